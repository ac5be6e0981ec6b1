//! The comparison behind the choice of the data path's I/O layer: the `io-uring` crate used directly, with several
//! flags, against tokio-uring, against plain system calls. 4 KiB random writes to a disk file and to tmpfs, and
//! 4 KiB ping-pong over one unix socket; CPU time of the whole process, kernel workers included.
//!
//! `--dir DIR` is where the disk file goes (default: under `target/`), `--ms N` how long one measurement takes,
//! `--rounds N` how often everything is measured, in turn.

mod layers;

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_benches::measure::{Table, cpu_time, median, option, thousands};
use layers::raw::Flags;

/// Bytes of every operation.
pub(crate) const BLOCK: usize = 4096;
/// Blocks of the file that is written.
pub(crate) const BLOCKS: u64 = 16 << 10;

/// How operations reach the kernel.
#[derive(Clone, Copy)]
enum Layer {
    Raw(Flags),
    TokioUring { coop: bool },
    Plain,
}

const LAYERS: [(&str, Layer); 7] = [
    ("io-uring, no flags", Layer::Raw(Flags { coop: false, defer: false, registered: false })),
    ("io-uring, COOP", Layer::Raw(Flags { coop: true, defer: false, registered: false })),
    ("io-uring, COOP, registered", Layer::Raw(Flags { coop: true, defer: false, registered: true })),
    ("io-uring, DEFER, registered", Layer::Raw(Flags { coop: false, defer: true, registered: true })),
    ("tokio-uring", Layer::TokioUring { coop: false }),
    ("tokio-uring, COOP", Layer::TokioUring { coop: true }),
    ("plain system calls", Layer::Plain),
];

/// What is done.
#[derive(Clone, Copy)]
enum Work<'a> {
    /// Random writes to a file. `waits` says whether a system call waits for a device, so that depth takes threads.
    Disk { file: &'a File, waits: bool },
    /// Round trips over one socket pair, both ends in this thread.
    PingPong,
}

/// When a measurement ends, and how much was done.
pub(crate) struct Budget {
    end: Instant,
    is_over: bool,
    /// Operations finished.
    pub(crate) operations: u64,
}

impl Budget {
    pub(crate) fn new(length: Duration) -> Self {
        Self { end: Instant::now() + length, is_over: false, operations: 0 }
    }

    /// Counts an operation; whether another one shall follow.
    pub(crate) fn another(&mut self) -> bool {
        self.operations += 1;
        if self.is_over {
            return false;
        }
        // The clock is looked at now and then: it is not what is measured.
        if self.operations.is_multiple_of(8) {
            self.is_over = Instant::now() >= self.end;
        }
        !self.is_over
    }
}

/// One measurement: CPU microseconds of an operation, and operations a second.
fn measure(layer: Layer, work: Work<'_>, depth: usize, length: Duration) -> io::Result<(f64, f64)> {
    let (cpu, began) = (cpu_time(), Instant::now());
    let operations = match (layer, work) {
        (Layer::Raw(flags), Work::Disk { file, .. }) => layers::raw::disk(flags, file, depth, length)?,
        (Layer::Raw(flags), Work::PingPong) => layers::raw::ping_pong(flags, depth, length)?,
        (Layer::TokioUring { coop }, Work::Disk { file, .. }) => {
            layers::tokio::disk(coop, file, depth, length)?
        }
        (Layer::TokioUring { coop }, Work::PingPong) => layers::tokio::ping_pong(coop, depth, length)?,
        (Layer::Plain, Work::Disk { file, waits }) => layers::plain::disk(file, depth, waits, length)?,
        (Layer::Plain, Work::PingPong) => layers::plain::ping_pong(depth, length)?,
    };
    let (cpu, seconds) = (cpu_time() - cpu, began.elapsed().as_secs_f64());
    Ok((cpu.as_secs_f64() * 1e6 / operations as f64, operations as f64 / seconds))
}

/// A file whose blocks all exist, and which goes with this value.
struct Scratch {
    path: PathBuf,
    file: File,
}

impl Scratch {
    fn new(dir: &Path, flags: i32) -> io::Result<Self> {
        let path = dir.join(format!("holdfast-bench-ring.{}", std::process::id()));
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let chunk = vec![0xa5; 1 << 20];
        for _ in 0..BLOCKS * BLOCK as u64 / chunk.len() as u64 {
            file.write_all(&chunk)?;
        }
        file.sync_all()?;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path)?;
        Ok(Self { path, file })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing is left to do about a file that cannot be removed.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn main() -> io::Result<()> {
    // The program lies under `target/`, and so on a disk.
    let default = std::env::current_exe()?.parent().map_or_else(std::env::temp_dir, Path::to_path_buf);
    let dir: PathBuf = option("dir", default);
    let (length, rounds) = (Duration::from_millis(option("ms", 120)), option("rounds", 3));
    let disk = Scratch::new(&dir, libc::O_DIRECT)?;
    let memory = Scratch::new(Path::new("/dev/shm"), 0)?;
    println!("disk file in {}, {rounds} rounds of {} ms, layers in turn", dir.display(), length.as_millis());
    let works = [
        ("4 KiB random writes, O_DIRECT, on disk", Work::Disk { file: &disk.file, waits: true }),
        ("4 KiB random writes on /dev/shm", Work::Disk { file: &memory.file, waits: false }),
        ("4 KiB ping-pong, one unix socket", Work::PingPong),
    ];
    for (name, work) in works {
        for depth in [1, 32] {
            compare(&format!("{name}, depth {depth}"), work, depth, length, rounds)?;
        }
    }
    Ok(())
}

fn compare(title: &str, work: Work<'_>, depth: usize, length: Duration, rounds: u32) -> io::Result<()> {
    let mut figures = vec![(Vec::new(), Vec::new()); LAYERS.len()];
    for _ in 0..rounds {
        for ((_, layer), (cpu, rate)) in LAYERS.iter().zip(&mut figures) {
            let (cpu_us, per_second) = measure(*layer, work, depth, length)?;
            cpu.push(cpu_us);
            rate.push(per_second);
        }
    }
    let medians: Vec<(f64, f64)> =
        figures.into_iter().map(|(cpu, rate)| (median(cpu), median(rate))).collect();
    let mut table = Table::new(&["layer", "CPU us/op", "ops/s", "CPU against no flags"]);
    for ((name, _), (cpu, rate)) in LAYERS.iter().zip(&medians) {
        table.row(vec![
            (*name).to_owned(),
            format!("{cpu:.2}"),
            thousands(*rate),
            format!("{:.2}", cpu / medians[0].0),
        ]);
    }
    table.print(title);
    Ok(())
}
