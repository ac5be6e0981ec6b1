//! Hostile bytes: every input of the corpus and a bounded number of fresh ones for `fuzz::fuzz_session`. The fresh
//! ones follow from a seed that is printed; `HOSTILE_SEED` gives another, `HOSTILE_MS` the time. An input that fails
//! belongs into `tests/corpus/session`.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::panic::{catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nbd_frontend::fuzz::fuzz_session;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 8).unwrap() % limit.max(1)
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap()
    }
}

fn number_from(name: &str, otherwise: impl FnOnce() -> u64) -> u64 {
    std::env::var(name).map_or_else(|_| otherwise(), |text| text.parse().expect("a number"))
}

fn corpus() -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/session");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

fn mutate(random: &mut Random, inputs: &[(PathBuf, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = inputs[random.below(inputs.len())].1.clone();
    for _ in 0..=random.below(8) {
        let at = random.below(bytes.len());
        match random.below(5) {
            _ if bytes.is_empty() => bytes.push(random.byte()),
            0 => bytes[at] ^= 1 << random.below(8),
            1 => drop(bytes.drain(at..(at + random.below(32)).min(bytes.len()))),
            2 => {
                let new: Vec<u8> = (0..random.below(64)).map(|_| random.byte()).collect();
                bytes.splice(at..at, new);
            }
            3 => {
                let other = &inputs[random.below(inputs.len())].1;
                bytes.truncate(at);
                bytes.extend_from_slice(&other[random.below(other.len())..]);
            }
            _ => bytes[at] = random.byte(),
        }
    }
    bytes.truncate(3000);
    bytes
}

#[test]
fn hostile_sessions_do_no_harm() {
    let inputs = corpus();
    assert!(!inputs.is_empty(), "there is a corpus");
    for (path, bytes) in &inputs {
        println!("{}", path.display());
        fuzz_session(bytes);
    }
    let seed = number_from("HOSTILE_SEED", || RandomState::new().hash_one("session")) | 1;
    println!("HOSTILE_SEED={seed}");
    let mut random = Random(seed);
    let end = Instant::now() + Duration::from_millis(number_from("HOSTILE_MS", || 700));
    let mut count = 0;
    while Instant::now() < end {
        let bytes = mutate(&mut random, &inputs);
        if let Err(panic) = catch_unwind(|| fuzz_session(&bytes)) {
            let path = std::env::temp_dir().join(format!("hostile-session-{seed}-{count}"));
            std::fs::write(&path, &bytes).unwrap();
            eprintln!("input {count} of seed {seed} fails; it is kept in {}", path.display());
            resume_unwind(panic);
        }
        count += 1;
    }
    println!("{count} fresh inputs");
}
