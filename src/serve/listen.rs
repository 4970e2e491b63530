//! Accepts connections, bounds their number, and ends them.

use std::future::Future;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::client::{Client, Clients, Oldest, Phase};
use super::engine::Engine;
use super::error::RETRY_AFTER;
use super::intake::Intake;
use super::routes::routes;
use super::watched::{WatchedBody, WatchedStream};

/// Time that open answers have to be completed when the server ends.
pub const GRACE: Duration = Duration::from_secs(30);

/// Connections, where the process may have as many descriptors.
const CONNECTIONS: usize = 512;

/// Descriptors that are left for everything else: the model's files, pipes, a connection that is
/// just being refused.
const RESERVED: usize = 32;

/// Connections that the kernel keeps until they are taken. The standard library's 128 overflow in a
/// burst, and a client that found no place tries again only after a second.
const BACKLOG: u32 = 4096;

/// How often it is looked for clients that have been waited for too long.
const TICK: Duration = Duration::from_secs(1);

/// The same when the server ends, and how long an answer may then remain unread.
const ENDING_TICK: Duration = Duration::from_millis(100);
const ENDING_UNREAD: Duration = Duration::from_secs(2);

/// Pause after an error that concerns no single connection: descriptors or memory are short, and
/// trying at once would only fail again.
const PAUSE: Duration = Duration::from_millis(20);

/// The head of a request; hyper answers a longer one with 431.
const HEAD: usize = 64 << 10;

/// Why a server ended.
#[derive(Debug, thiserror::Error)]
#[error("the server ended: {0}")]
pub struct ServeError(#[from] io::Error);

/// Listens at an address. Needs a runtime.
///
/// # Errors
/// The address is in use, or is not this machine's.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A server that has just ended must not keep its port from the next one.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Answers requests until `end` comes; then open answers have [`GRACE`] to be completed.
///
/// # Errors
/// The listener has no address.
pub async fn serve(
    listener: TcpListener,
    engine: Engine,
    end: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let port = listener.local_addr()?.port();
    let mut desk = Desk::new(routes(Intake::new(engine), port));
    let mut end = pin!(end);
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            () = &mut end => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => desk.take(stream).await,
                Err(error) => desk.failed(&error).await,
            },
            _ = tick.tick() => desk.clients.cut_overdue(Instant::now()),
            Some(_) = desk.open.join_next() => {}
        }
    }
    drop(listener);
    desk.close().await;
    Ok(())
}

/// All connections.
struct Desk {
    routes: TowerToHyperService<Router>,
    clients: Clients,
    open: JoinSet<()>,
    most: usize,
    ending: watch::Sender<bool>,
}

impl Desk {
    fn new(routes: Router) -> Desk {
        Desk {
            routes: TowerToHyperService::new(routes),
            clients: Clients::default(),
            open: JoinSet::new(),
            most: connections(),
            ending: watch::Sender::new(false),
        }
    }

    /// Takes a connection. Where there are too many, one whose client is waited for gives way;
    /// where all clients wait for their answers, the new one does.
    async fn take(&mut self, stream: TcpStream) {
        while self.open.len() >= self.most {
            match self.clients.cut_oldest(Instant::now()) {
                // Not before its descriptor is free.
                Oldest::Cut => drop(self.open.join_next().await),
                Oldest::Young(left) => drop(timeout(left, self.open.join_next()).await),
                Oldest::Nobody => return refuse(stream),
            }
            // Connections that have just come are read from.
            tokio::task::yield_now().await;
        }
        let client = Arc::new(Client::new(Instant::now()));
        self.clients.add(Arc::downgrade(&client));
        let (routes, ending) = (self.routes.clone(), self.ending.subscribe());
        self.open.spawn(attend(stream, client, routes, ending));
    }

    /// A connection could not be taken.
    async fn failed(&mut self, error: &io::Error) {
        let is_its_own = matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::Interrupted
        );
        if !is_its_own {
            // Something else in the process has taken descriptors.
            self.clients.cut_oldest(Instant::now());
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn close(&mut self) {
        // Without connections nobody listens.
        let _ = self.ending.send(true);
        let mut grace = pin!(tokio::time::sleep(GRACE));
        let mut tick = tokio::time::interval(ENDING_TICK);
        loop {
            tokio::select! {
                () = &mut grace => break,
                _ = tick.tick() => self.clients.cut_unanswered(Instant::now(), ENDING_UNREAD),
                next = self.open.join_next() => if next.is_none() { return },
            }
        }
        self.open.shutdown().await;
    }
}

/// Answers the requests of a connection.
async fn attend(
    stream: TcpStream,
    client: Arc<Client>,
    routes: TowerToHyperService<Router>,
    mut ending: watch::Receiver<bool>,
) {
    // Pieces of a stream are small and wanted at once; without this they only come later.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(WatchedStream::new(stream, Arc::clone(&client)));
    let owner = Arc::clone(&client);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let client = Arc::clone(&owner);
        client.enter(Phase::Answer);
        request.extensions_mut().insert(Arc::clone(&client));
        let answer = routes.call(request);
        async move {
            let answer = answer.await?;
            Ok::<_, std::convert::Infallible>(answer.map(|body| WatchedBody::new(body, client)))
        }
    });
    let mut builder = http1::Builder::new();
    let connection = builder.max_buf_size(HEAD).serve_connection(io, service);
    let mut connection = pin!(connection);
    loop {
        tokio::select! {
            // An error is the client's doing, and the client is gone.
            _ = connection.as_mut() => return,
            () = client.is_cut() => return,
            Ok(()) = ending.changed() => connection.as_mut().graceful_shutdown(),
        }
    }
}

/// Turns a client away with what fits into the connection's buffer.
fn refuse(stream: TcpStream) {
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: {RETRY_AFTER}\r\n\
         Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
    if let Ok(mut stream) = stream.into_std() {
        // A client that doesn't get it sees a closed connection.
        let _ = stream.write(answer.as_bytes());
    }
}

/// As many connections as the process may have descriptors for.
fn connections() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    within(limit)
}

fn within(descriptors: usize) -> usize {
    let free = descriptors.saturating_sub(RESERVED).max(descriptors / 2);
    free.clamp(1, CONNECTIONS)
}

#[cfg(test)]
mod tests {
    use super::within;

    #[test]
    fn connections_leave_descriptors_for_the_rest() {
        assert_eq!(within(usize::MAX), 512);
        assert_eq!(within(1024), 512);
        assert_eq!(within(256), 224);
        assert_eq!(within(32), 16);
        assert_eq!(within(0), 1);
    }
}
