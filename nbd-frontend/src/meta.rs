//! Metadata contexts: which of them the queries of an option select. There is one, `base:allocation`.

use crate::bytes::Reader;
use crate::spec;

/// The one context offered.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// Its id in block status replies. Not zero, so that a client that forgot to look it up is noticed.
pub const BASE_ALLOCATION_ID: u32 = 1;

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
pub(crate) struct MetaQuery<'a> {
    /// The export asked about.
    pub(crate) export_name: &'a [u8],
    /// What a listing shows: no query asks for everything, "base:" for everything in that namespace.
    pub(crate) lists_allocation: bool,
    /// What a setting selects: only full names do.
    pub(crate) selects_allocation: bool,
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
        let mut query = Self { export_name, lists_allocation: count == 0, selects_allocation: false };
        // The count is not trusted: each turn takes at least four bytes or ends.
        for _ in 0..count {
            let text = reader.string()?;
            query.selects_allocation |= text == BASE_ALLOCATION.as_bytes();
            query.lists_allocation |= query.selects_allocation || text == b"base:";
        }
        reader.is_empty().then_some(query)
    }
}
