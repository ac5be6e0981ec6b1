//! Memory that O_DIRECT takes.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use crate::BLOCK;

/// A block, aligned to its size.
pub(crate) struct Block(NonNull<u8>);

const LAYOUT: Layout = match Layout::from_size_align(BLOCK, BLOCK) {
    Ok(layout) => layout,
    Err(_) => panic!("a power of two"),
};

impl Block {
    pub(crate) fn new() -> Self {
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc_zeroed(LAYOUT) };
        Self(NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(LAYOUT)))
    }

    pub(crate) fn pointer(&self) -> *mut u8 {
        self.0.as_ptr()
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the memory is this value's alone, initialised, and as long.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr(), BLOCK) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout and is freed once.
        unsafe { dealloc(self.0.as_ptr(), LAYOUT) }
    }
}

// SAFETY: the pointer stays valid wherever the value moves, until it is dropped.
unsafe impl tokio_uring::buf::IoBuf for Block {
    fn stable_ptr(&self) -> *const u8 {
        self.pointer()
    }

    fn bytes_init(&self) -> usize {
        BLOCK
    }

    fn bytes_total(&self) -> usize {
        BLOCK
    }
}

// SAFETY: the pointer stays valid and the memory is initialised throughout, whatever length is set.
unsafe impl tokio_uring::buf::IoBufMut for Block {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.pointer()
    }

    unsafe fn set_init(&mut self, _length: usize) {}
}
