//! Ten thousand damaged headers of each kind of file: no panic, no large allocation, no hang.

#[path = "common/mutate.rs"]
mod mutate;
#[path = "common/sample.rs"]
mod sample;
#[path = "common/sign.rs"]
mod sign;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use dwindle_formats::container::{Container, verify};
use dwindle_formats::gguf::read_header;
use mutate::mutate;
use peak_alloc::PeakAlloc;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Damaged headers of each of the two files.
const MUTANTS: u64 = 10_000;
/// Bytes that reading a file of some kilobytes may take at once.
const ALLOCATION_LIMIT: usize = 64 << 20;
/// Far above what one file takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// What came of the mutants.
#[derive(Debug, Default)]
struct Fates {
    refused: u64,
    damaged: u64,
    accepted: u64,
}

#[test]
fn ten_thousand_damaged_headers_do_no_harm() {
    let (progress, watched) = mpsc::channel();
    // Only this thread may end the test: the reader could hang.
    let reader = thread::spawn(move || {
        let mut fates = Fates::default();
        for (compress, seed) in [(true, 1), (false, 2)] {
            read_mutants(&sample::sample(compress), seed, &mut fates, &progress);
        }
        fates
    });
    let mut last = String::from("the first");
    loop {
        match watched.recv_timeout(PATIENCE) {
            Ok(mutant) => last = mutant,
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("hangs at mutant {last}"),
        }
    }
    let fates = reader
        .join()
        .unwrap_or_else(|_| panic!("died of mutant {last}"));
    // Each fate must occur, or the damage is not what the test takes it for.
    assert!(fates.refused > 1000, "{fates:?}");
    assert!(fates.damaged > 50 && fates.accepted > 500, "{fates:?}");
}

fn read_mutants(good: &[u8], seed: u64, fates: &mut Fates, progress: &mpsc::Sender<String>) {
    let header = read_header(good).unwrap().data_start as usize;
    for index in 0..MUTANTS {
        // Each mutant has its own seed, so that one can be made again alone.
        let mut rng = ChaCha8Rng::seed_from_u64(seed << 32 | index);
        let mut bytes = good.to_vec();
        mutate(&mut rng, &mut bytes, header);
        match index % 3 {
            0 => {}
            1 => sign::sign_header(&mut bytes),
            _ => sign::sign(&mut bytes),
        }
        progress.send(format!("{index} of seed {seed}")).unwrap();
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage();
        read(&bytes, fates);
        let taken = MEMORY.peak_usage() - before;
        assert!(
            taken <= ALLOCATION_LIMIT,
            "mutant {index} of seed {seed} takes {taken} bytes"
        );
    }
}

fn read(bytes: &[u8], fates: &mut Fates) {
    let Ok(container) = Container::read(bytes) else {
        fates.refused += 1;
        return;
    };
    let verified = verify(&container, bytes, |_| (), |_| ()).is_empty();
    let mut decoded = true;
    for (i, part) in container.plan.parts().enumerate() {
        // A part that truly is this large may take as much memory as it is large.
        if part.bytes() < 1 << 24 {
            decoded &= container.decode(bytes, i).is_ok();
        }
    }
    match verified && decoded {
        true => fates.accepted += 1,
        false => fates.damaged += 1,
    }
}
