//! Metadata contexts: which an export has, and which of them the queries of an option select. There is
//! `base:allocation`, and `holdfast:dirty:NAME` for each bookmark of an export that has some: which parts changed
//! since.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::bytes::Reader;
use crate::export::Export;
use crate::spec;

/// What every export has.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// What stands before the name of a bookmark.
pub const DIRTY: &str = "holdfast:dirty:";

/// The id of `base:allocation` in block status replies; the others follow. Not zero, so that a client that forgot to
/// look it up is noticed.
pub const BASE_ALLOCATION_ID: u32 = 1;

/// A context that was selected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// Names it in replies.
    pub id: u32,
    /// What it tells.
    pub kind: ContextKind,
}

/// What a context tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextKind {
    /// What is a hole, and what reads as zeroes.
    Allocation,
    /// What changed since the bookmark of this name.
    Dirty(String),
}

impl Context {
    /// All contexts of an export.
    pub(crate) fn all_of(export: &Export) -> Vec<Self> {
        let dirty = export.bookmarks.iter().cloned().map(ContextKind::Dirty);
        let kinds = core::iter::once(ContextKind::Allocation).chain(dirty);
        (BASE_ALLOCATION_ID..).zip(kinds).map(|(id, kind)| Self { id, kind }).collect()
    }

    /// Its full name.
    pub(crate) fn name(&self) -> String {
        match &self.kind {
            ContextKind::Allocation => BASE_ALLOCATION.to_string(),
            ContextKind::Dirty(bookmark) => [DIRTY, bookmark].concat(),
        }
    }

    /// What is said of a range of which nothing is known: allocated data, and changed. That is always true enough.
    pub(crate) const fn flags_unknown(&self) -> u32 {
        match self.kind {
            ContextKind::Allocation => 0,
            ContextKind::Dirty(_) => spec::HOLDFAST_STATE_DIRTY,
        }
    }
}

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
pub(crate) struct MetaQuery<'a> {
    /// The export asked about.
    pub(crate) export_name: &'a [u8],
    count: u32,
    /// Well formed to the last byte.
    queries: &'a [u8],
}

impl<'a> MetaQuery<'a> {
    /// `None` if the data is not well formed to its last byte. Queries of unknown namespaces, unknown
    /// leaf names and strings that are no query at all select nothing and are no error.
    pub(crate) fn parse(data: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(data);
        let export_name = reader.string()?;
        if export_name.len() > spec::STRING_BYTES_MAX {
            return None;
        }
        let count = reader.u32()?;
        let queries = reader.rest();
        // The count is not trusted: each turn takes at least four bytes or ends.
        for _ in 0..count {
            reader.string()?;
        }
        reader.is_empty().then_some(Self { export_name, count, queries })
    }

    /// What a setting selects: only full names do.
    pub(crate) fn selects(&self, context: &Context) -> bool {
        let name = context.name();
        self.texts().any(|text| text == name.as_bytes())
    }

    /// What a listing shows: no query asks for everything, "base:" for everything in that namespace.
    pub(crate) fn lists(&self, context: &Context) -> bool {
        let prefixes: &[&[u8]] = match context.kind {
            ContextKind::Allocation => &[b"base:"],
            ContextKind::Dirty(_) => &[b"holdfast:", DIRTY.as_bytes()],
        };
        self.count == 0 || self.selects(context) || self.texts().any(|text| prefixes.contains(&text))
    }

    fn texts(&self) -> impl Iterator<Item = &'a [u8]> + '_ {
        let mut reader = Reader::new(self.queries);
        (0..self.count).map_while(move |_| reader.string())
    }
}
