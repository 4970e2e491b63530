//! Turns a request's body into a job: reads, parses and tokenizes it, each within bounds, and only
//! while its client waits.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request as HttpRequest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_stream::StreamExt;

use super::client::{Client, Phase};
use super::engine::Engine;
use super::error::ApiError;
use crate::llama::model::Token;

/// Time for a body to come.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Bytes of bodies that are held at once. Bytes count when they have come: who only announces a
/// long body takes nothing from others.
const BODIES: usize = 64 << 20;

/// Requests that are parsed and tokenized at once. Tokenizing takes some sixty times the memory of
/// its text.
const TURNS: usize = 2;

/// Requests that may wait for such a turn.
const WAITING: usize = 128;

/// Texts that are embedded before it is asked whether their client still waits.
const AT_ONCE: usize = 16;

/// The way in.
#[derive(Debug, Clone)]
pub struct Intake {
    engine: Engine,
    bodies: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    embedding: Arc<Semaphore>,
}

/// A body, and its share of what may be held.
#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    share: Option<OwnedSemaphorePermit>,
}

impl Intake {
    /// The way in to this engine.
    pub fn new(engine: Engine) -> Intake {
        Intake {
            engine,
            bodies: Arc::new(Semaphore::new(BODIES)),
            waiting: Arc::new(Semaphore::new(WAITING)),
            turns: Arc::new(Semaphore::new(TURNS)),
            embedding: Arc::new(Semaphore::new(1)),
        }
    }

    /// Where jobs go.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Takes a request in: parses its body, then tokenizes it. Dropping the future gives everything up but a
    /// text that is just being tokenized, which llama.cpp can't be kept from; it counts until it is done.
    ///
    /// # Errors
    /// What is wrong, for the client.
    pub async fn take<D, T: Send + 'static>(
        &self,
        request: HttpRequest,
        parse: impl FnOnce(&[u8], &Engine) -> Result<D, ApiError> + Send + 'static,
        tokenize: impl FnOnce(D, &Engine) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let client = request.extensions().get::<Arc<Client>>().cloned();
        let is_in = |phase| {
            if let Some(client) = &client {
                client.enter(phase);
            }
        };
        is_in(Phase::Body);
        let body = tokio::time::timeout(BODY_TIME, self.body(request.into_body())).await;
        is_in(Phase::Answer);
        let body = body.map_err(|_| ApiError::slow(BODY_TIME))??;
        let engine = self.engine.clone();
        let work = move |is_gone: &dyn Fn() -> bool| {
            let draft = parse(&body.bytes, &engine);
            drop(body);
            // The client may have gone while the body was parsed.
            match is_gone() {
                true => Err(ApiError::ending()),
                false => tokenize(draft?, &engine),
            }
        };
        self.in_turn(&self.turns, work).await
    }

    /// Embeds texts, one request after the other.
    ///
    /// # Errors
    /// What is wrong, for the client.
    pub async fn embed(&self, texts: Vec<Vec<Token>>) -> Result<Vec<Vec<f32>>, ApiError> {
        let engine = self.engine.clone();
        let work = move |is_gone: &dyn Fn() -> bool| {
            let mut rows = Vec::with_capacity(texts.len());
            for some in texts.chunks(AT_ONCE) {
                if is_gone() {
                    return Err(ApiError::ending());
                }
                rows.extend(engine.embed(some)?);
            }
            Ok(rows)
        };
        self.in_turn(&self.embedding, work).await
    }

    async fn body(&self, body: Body) -> Result<Held, ApiError> {
        let limit = self.engine.limits().body();
        let too_large = || ApiError::too_large(limit);
        if body.size_hint().lower() > limit as u64 {
            return Err(too_large());
        }
        let mut held = Held::default();
        let mut pieces = body.into_data_stream();
        while let Some(piece) = pieces.next().await {
            let piece =
                piece.map_err(|e| ApiError::invalid(format!("the body ends early: {e}")))?;
            if held.bytes.len() + piece.len() > limit {
                return Err(too_large());
            }
            // A piece is no longer than the limit, which is far below 4 GiB.
            let share = Arc::clone(&self.bodies).try_acquire_many_owned(piece.len() as u32);
            let share = share.map_err(|_| ApiError::busy())?;
            match &mut held.share {
                Some(held) => held.merge(share),
                None => held.share = Some(share),
            }
            held.bytes.extend_from_slice(&piece);
        }
        Ok(held)
    }

    /// Does work that takes time, when there is a turn for it. The work can ask whether its client has gone.
    async fn in_turn<T: Send + 'static>(
        &self,
        turns: &Arc<Semaphore>,
        work: impl FnOnce(&dyn Fn() -> bool) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let place = Arc::clone(&self.waiting).try_acquire_owned();
        let place = place.map_err(|_| ApiError::busy())?;
        let turn = Arc::clone(turns).acquire_owned().await;
        let turn = turn.map_err(|_| ApiError::ending())?;
        drop(place);
        let (answer, found) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let found = work(&|| answer.is_closed());
            // The client may have gone.
            let _ = answer.send(found);
        });
        let failed = |_| ApiError::internal("reading the request failed");
        found.await.map_err(failed)?
    }
}
