//! Hostile bytes for one function: every input of its corpus, and a bounded number of fresh ones that are made of
//! those. The fresh ones follow from a seed that is printed; `HOSTILE_SEED` gives another, `HOSTILE_MS` the time for
//! each function. An input that fails belongs into `tests/corpus` of its crate, under the function's name. Shared by
//! the tests of all crates that have a corpus.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// An input made of another: bytes changed, cut out, put in, or of two inputs; at times all new.
fn mutate(random: &mut Random, inputs: &[(PathBuf, Vec<u8>)], most: usize) -> Vec<u8> {
    let mut bytes = inputs[random.below(inputs.len())].1.clone();
    if random.below(4) == 0 {
        let (style, length) = (bytes.first().copied(), random.below(most));
        bytes = (0..length).map(|_| random.byte()).collect();
        if let (Some(style), Some(first)) = (style, bytes.first_mut()) {
            *first = style;
        }
    }
    for _ in 0..=random.below(8) {
        let at = random.below(bytes.len());
        match random.below(6) {
            _ if bytes.is_empty() => bytes.push(random.byte()),
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 1, 2, 127, 128, 254, 255][random.below(7)],
            2 => drop(bytes.drain(at..(at + random.below(32)).min(bytes.len()))),
            3 => {
                let new: Vec<u8> = (0..random.below(32)).map(|_| random.byte()).collect();
                bytes.splice(at..at, new);
            }
            4 => {
                let other = &inputs[random.below(inputs.len())].1;
                bytes.truncate(at);
                bytes.extend_from_slice(&other[random.below(other.len())..]);
            }
            _ => bytes[at] = random.byte(),
        }
    }
    bytes.truncate(most);
    bytes
}

/// Runs the corpus, then fresh inputs of at most `most` bytes for a while.
pub(crate) fn attack(target: &str, most: usize, function: fn(&[u8])) {
    let inputs = corpus(target);
    assert!(!inputs.is_empty(), "{target} has a corpus");
    for (path, bytes) in &inputs {
        println!("{}", path.display());
        function(bytes);
    }
    let seed = number_from("HOSTILE_SEED", || RandomState::new().hash_one(target)) | 1;
    println!("{target}: HOSTILE_SEED={seed}");
    let mut random = Random(seed);
    let end = Instant::now() + Duration::from_millis(number_from("HOSTILE_MS", || 700));
    let mut count = 0;
    while Instant::now() < end {
        let bytes = mutate(&mut random, &inputs, most);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| function(&bytes))) {
            let path = std::env::temp_dir().join(format!("hostile-{target}-{seed}-{count}"));
            std::fs::write(&path, &bytes).unwrap();
            eprintln!("{target}: input {count} of seed {seed} fails; it is kept in {}", path.display());
            resume_unwind(panic);
        }
        count += 1;
    }
    println!("{target}: {count} fresh inputs");
}
