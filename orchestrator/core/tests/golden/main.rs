//! Decisions as sentences. Each case in `*.txt` begins with what must hold, says in `given` lines how the state differs
//! from the usual one, and then everything that is decided: nothing more and nothing less.
//!
//! The usual state: nodes a, b and w are heard; volume r0 has replicas on a and b; its record is epoch 1, version 2, opened,
//! primary a, members a and b; a serves and is followed by b, both hold 1:100, proven and UpToDate; a was granted a lease
//! 100 ms ago and holds one; the leader has led for 100 seconds; every node runs under the boot that is agreed on.
//!
//! `HOLDFAST_GOLDEN=write cargo test` writes down what is decided now; read the difference before it is committed.

mod world;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use world::World;

/// The cases there are at least: losing a file must not go unnoticed.
const CASES_MIN: usize = 100;

#[test]
fn every_decision_is_the_one_written_down() {
    let write = std::env::var_os("HOLDFAST_GOLDEN").is_some_and(|value| value == "write");
    let (mut count, mut wrong) = (0, String::new());
    for file in files() {
        let text = std::fs::read_to_string(&file).unwrap();
        let mut now = String::new();
        for block in text.split("\n\n").map(str::trim).filter(|block| !block.is_empty()) {
            if !block.starts_with("## ") {
                let _ = write!(now, "{block}\n\n");
                continue;
            }
            count += 1;
            let lines: Vec<&str> = block.lines().collect();
            let given: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("given ")).collect();
            let mut world = World::usual();
            for line in &given {
                world.given(line).unwrap_or_else(|error| panic!("{}: {}: {error}", file.display(), lines[0]));
            }
            let mut found = format!("{}\n", lines[0]);
            given.iter().for_each(|line| found += &format!("given {line}\n"));
            world.decided().iter().for_each(|line| found += &format!("{line}\n"));
            if found.trim() != block {
                let _ = write!(wrong, "\nin {}, written:\n{block}\n\ndecided:\n{found}", file.display());
            }
            let _ = writeln!(now, "{found}");
        }
        if write {
            std::fs::write(&file, format!("{}\n", now.trim_end())).unwrap();
        }
    }
    assert!(write || wrong.is_empty(), "{wrong}");
    assert!(count >= CASES_MIN, "{count} cases");
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "txt")).collect();
    files.sort();
    files
}
