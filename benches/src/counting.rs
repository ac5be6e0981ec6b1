//! An allocator that counts, and on request says who asked.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

static COUNT: AtomicU64 = AtomicU64::new(0);
static TRACES_LEFT: AtomicU64 = AtomicU64::new(0);
static TRACES: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

thread_local! {
    static IS_TRACING: Cell<bool> = const { Cell::new(false) };
}

/// The system's allocator with a counter of allocations and reallocations. A program makes it its
/// `#[global_allocator]`.
#[derive(Debug)]
pub struct Counting;

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract; counting and
// tracing do not touch the memory, and tracing does not call itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's duties are the same.
        unsafe { System.realloc(memory, layout, new_size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's duties are the same.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn count() {
    if TRACES_LEFT.load(Ordering::Relaxed) == 0 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        return;
    }
    // What tracing itself allocates is not counted.
    if IS_TRACING.replace(true) {
        return;
    }
    COUNT.fetch_add(1, Ordering::Relaxed);
    TRACES_LEFT.fetch_sub(1, Ordering::Relaxed);
    let place = place_of(&Backtrace::force_capture().to_string());
    *TRACES.lock().expect("nothing panics while it is held").entry(place).or_insert(0) += 1;
    IS_TRACING.set(false);
}

/// Allocations so far.
#[must_use]
pub fn count_so_far() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// Runs `body` and returns where up to `limit` of its allocations came from, with how many each made.
pub fn trace(limit: u64, body: impl FnOnce()) -> BTreeMap<String, u64> {
    TRACES_LEFT.store(limit, Ordering::Relaxed);
    body();
    TRACES_LEFT.store(0, Ordering::Relaxed);
    std::mem::take(&mut *TRACES.lock().expect("nothing panics while it is held"))
}

/// The innermost frames of a printed backtrace that are this project's.
fn place_of(backtrace: &str) -> String {
    let mut frames = Vec::new();
    let mut lines = backtrace.lines().map(str::trim).peekable();
    while let Some(line) = lines.next() {
        let Some(at) = lines.peek().and_then(|next| next.strip_prefix("at ")) else { continue };
        let name = line.split_once(": ").map_or(line, |(_, name)| name);
        let ours = ["replicator/core/src", "nbd-frontend/src", "benches/src", "benches/benches"];
        if let Some(start) = ours.iter().find_map(|path| at.find(path)).filter(|_| !name.contains("counting"))
        {
            frames.push(format!("{name} ({})", &at[start..]));
        }
        if frames.len() == 3 {
            break;
        }
    }
    if frames.is_empty() { "outside this project".to_owned() } else { frames.join("\n      from ") }
}
