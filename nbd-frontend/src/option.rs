//! Answers one option of the handshake whose data has arrived whole. Does not cut the stream.

use alloc::string::String;
use alloc::vec::Vec;

use crate::bytes::{Reader, clip, put};
use crate::error::SessionError;
use crate::export::{Availability, Export};
use crate::meta::{Context, MetaQuery};
use crate::reply::ReplyFormat;
use crate::session::Negotiated;
use crate::spec;

/// What the client has chosen so far.
pub(crate) struct Choices {
    /// It does not want the zeroes after `NBD_OPT_EXPORT_NAME`.
    pub(crate) no_zeroes: bool,
    pub(crate) format: ReplyFormat,
    /// The export for which contexts are selected, and which.
    pub(crate) contexts_of: Option<(String, Vec<Context>)>,
}

/// What follows an answer.
pub(crate) enum Answer {
    /// The next option.
    Stay,
    /// The transmission phase.
    Enter(Negotiated),
}

/// A complete option.
pub(crate) struct ClientOption<'a> {
    pub(crate) option: u32,
    pub(crate) data: &'a [u8],
}

/// Whether the data of an option is looked at. All others are drained and answered without.
pub(crate) const fn is_known(option: u32) -> bool {
    matches!(
        option,
        spec::NBD_OPT_EXPORT_NAME
            | spec::NBD_OPT_LIST
            | spec::NBD_OPT_INFO
            | spec::NBD_OPT_GO
            | spec::NBD_OPT_STRUCTURED_REPLY
            | spec::NBD_OPT_LIST_META_CONTEXT
            | spec::NBD_OPT_SET_META_CONTEXT
            | spec::NBD_OPT_EXTENDED_HEADERS
    )
}

/// A reply to an option, made of parts.
pub(crate) fn put_reply(output: &mut Vec<u8>, option: u32, kind: u32, parts: &[&[u8]]) {
    // Parts are a few strings, each clipped to STRING_BYTES_MAX.
    let length_bytes = parts.iter().map(|part| part.len()).sum::<usize>() as u32;
    let header = [&spec::NBD_REP_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &kind.to_be_bytes()];
    put(output, &header);
    put(output, &[&length_bytes.to_be_bytes()]);
    put(output, parts);
}

impl ClientOption<'_> {
    /// Answers it, unless it has no way to say no and no is the answer.
    pub(crate) fn answer(
        &self,
        choices: &mut Choices,
        exports: &[Export],
        output: &mut Vec<u8>,
    ) -> Result<Answer, SessionError> {
        match self.option {
            spec::NBD_OPT_EXPORT_NAME => return self.on_export_name(choices, exports, output),
            spec::NBD_OPT_INFO | spec::NBD_OPT_GO => return Ok(self.on_info(choices, exports, output)),
            spec::NBD_OPT_LIST => self.on_list(exports, output),
            spec::NBD_OPT_STRUCTURED_REPLY => self.on_structured_reply(choices, output),
            spec::NBD_OPT_EXTENDED_HEADERS => self.on_extended_headers(choices, output),
            spec::NBD_OPT_LIST_META_CONTEXT | spec::NBD_OPT_SET_META_CONTEXT => {
                self.on_meta_context(choices, exports, output);
            }
            _ => self.put(output, spec::NBD_REP_ERR_UNSUP, &[]),
        }
        Ok(Answer::Stay)
    }

    fn on_export_name(
        &self,
        choices: &Choices,
        exports: &[Export],
        output: &mut Vec<u8>,
    ) -> Result<Answer, SessionError> {
        if choices.format == ReplyFormat::Extended {
            return Err(SessionError::ExportNameWithExtendedHeaders);
        }
        let (index, export) = match find(self.data, exports) {
            Found::Ready(index, export) => (index, export),
            Found::Refused(_) => return Err(SessionError::ExportRefused),
            Found::Unknown => return Err(SessionError::ExportUnknown),
        };
        let negotiated = choices.settle(index, export);
        let flags = export.transmission_flags(choices.format, negotiated.takes_status_payload());
        put(output, &[&negotiated.size_bytes.to_be_bytes(), &flags.to_be_bytes()]);
        if !choices.no_zeroes {
            put(output, &[&[0; spec::EXPORT_NAME_ZEROES_BYTES]]);
        }
        Ok(Answer::Enter(negotiated))
    }

    fn on_list(&self, exports: &[Export], output: &mut Vec<u8>) {
        if !self.data.is_empty() {
            return self.put_error(output, spec::NBD_REP_ERR_INVALID, "NBD_OPT_LIST takes no data");
        }
        for export in exports {
            let name = clip(&export.name, spec::STRING_BYTES_MAX).as_bytes();
            let description = clip(&export.description, spec::STRING_BYTES_MAX).as_bytes();
            let name_bytes = (name.len() as u32).to_be_bytes();
            self.put(output, spec::NBD_REP_SERVER, &[&name_bytes, name, description]);
        }
        self.put(output, spec::NBD_REP_ACK, &[]);
    }

    fn on_info(&self, choices: &Choices, exports: &[Export], output: &mut Vec<u8>) -> Answer {
        let Some(query) = InfoQuery::parse(self.data) else {
            self.put_error(output, spec::NBD_REP_ERR_INVALID, "malformed option data");
            return Answer::Stay;
        };
        let Some((index, export)) = self.find_or_explain(query.export_name, exports, output) else {
            return Answer::Stay;
        };
        let negotiated = choices.settle(index, export);
        let flags = export.transmission_flags(choices.format, negotiated.takes_status_payload());
        let size = export.size_bytes.to_be_bytes();
        self.put_info(output, spec::NBD_INFO_EXPORT, &[&size, &flags.to_be_bytes()]);
        // Always told, asked or not: requests will be held to it.
        let block = [export.block.min_bytes, export.block.preferred_bytes, export.block.max_bytes];
        let [min, preferred, max] = block.map(u32::to_be_bytes);
        self.put_info(output, spec::NBD_INFO_BLOCK_SIZE, &[&min, &preferred, &max]);
        if query.wants_name {
            let name = clip(&export.name, spec::STRING_BYTES_MAX);
            self.put_info(output, spec::NBD_INFO_NAME, &[name.as_bytes()]);
        }
        if query.wants_description && !export.description.is_empty() {
            let description = clip(&export.description, spec::STRING_BYTES_MAX);
            self.put_info(output, spec::NBD_INFO_DESCRIPTION, &[description.as_bytes()]);
        }
        self.put(output, spec::NBD_REP_ACK, &[]);
        if self.option == spec::NBD_OPT_GO { Answer::Enter(negotiated) } else { Answer::Stay }
    }

    fn on_structured_reply(&self, choices: &mut Choices, output: &mut Vec<u8>) {
        if !self.data.is_empty() {
            return self.put_error(
                output,
                spec::NBD_REP_ERR_INVALID,
                "NBD_OPT_STRUCTURED_REPLY takes no data",
            );
        }
        if choices.format == ReplyFormat::Extended {
            let message = "extended headers are negotiated already";
            return self.put_error(output, spec::NBD_REP_ERR_EXT_HEADER_REQD, message);
        }
        choices.format = ReplyFormat::Structured;
        self.put(output, spec::NBD_REP_ACK, &[]);
    }

    fn on_extended_headers(&self, choices: &mut Choices, output: &mut Vec<u8>) {
        if !self.data.is_empty() {
            return self.put_error(
                output,
                spec::NBD_REP_ERR_INVALID,
                "NBD_OPT_EXTENDED_HEADERS takes no data",
            );
        }
        choices.format = ReplyFormat::Extended;
        self.put(output, spec::NBD_REP_ACK, &[]);
    }

    fn on_meta_context(&self, choices: &mut Choices, exports: &[Export], output: &mut Vec<u8>) {
        let sets = self.option == spec::NBD_OPT_SET_META_CONTEXT;
        if sets {
            // Even a setting that fails takes back the one before it.
            choices.contexts_of = None;
        }
        if choices.format == ReplyFormat::Simple {
            return self.put_error(output, spec::NBD_REP_ERR_INVALID, "structured replies come first");
        }
        let Some(query) = MetaQuery::parse(self.data) else {
            return self.put_error(output, spec::NBD_REP_ERR_INVALID, "malformed option data");
        };
        let Some((_, export)) = self.find_or_explain(query.export_name, exports, output) else {
            return;
        };
        let mut contexts = Context::all_of(export);
        contexts.retain(|context| if sets { query.selects(context) } else { query.lists(context) });
        for context in &contexts {
            // Ids in a listing are reserved.
            let id = if sets { context.id } else { 0 };
            self.put_context(output, id, &context.name());
        }
        if sets && !contexts.is_empty() {
            choices.contexts_of = Some((export.name.clone(), contexts));
        }
        self.put(output, spec::NBD_REP_ACK, &[]);
    }

    /// The export if it can be used; otherwise the client has been told why not.
    fn find_or_explain<'e>(
        &self,
        name: &[u8],
        exports: &'e [Export],
        output: &mut Vec<u8>,
    ) -> Option<(usize, &'e Export)> {
        match find(name, exports) {
            Found::Ready(index, export) => return Some((index, export)),
            Found::Refused(message) => self.put_error(output, spec::NBD_REP_ERR_POLICY, message),
            Found::Unknown => self.put_error(output, spec::NBD_REP_ERR_UNKNOWN, "no export of that name"),
        }
        None
    }

    fn put_context(&self, output: &mut Vec<u8>, id: u32, name: &str) {
        self.put(output, spec::NBD_REP_META_CONTEXT, &[&id.to_be_bytes(), name.as_bytes()]);
    }

    fn put_info(&self, output: &mut Vec<u8>, kind: u16, parts: &[&[u8]]) {
        let body: Vec<u8> = parts.concat();
        self.put(output, spec::NBD_REP_INFO, &[&kind.to_be_bytes(), &body]);
    }

    fn put_error(&self, output: &mut Vec<u8>, kind: u32, message: &str) {
        self.put(output, kind, &[clip(message, spec::STRING_BYTES_MAX).as_bytes()]);
    }

    fn put(&self, output: &mut Vec<u8>, kind: u32, parts: &[&[u8]]) {
        put_reply(output, self.option, kind, parts);
    }
}

impl Choices {
    /// What the transmission phase will be held to. A copy: what the client was told stays true for it.
    fn settle(&self, export_index: usize, export: &Export) -> Negotiated {
        let selected = self.contexts_of.as_ref().filter(|(name, _)| *name == export.name);
        Negotiated {
            export_index,
            export_name: export.name.clone(),
            size_bytes: export.size_bytes,
            flags: export.flags.offered(),
            block: export.block,
            format: self.format,
            contexts: selected.map(|(_, contexts)| contexts.clone()).unwrap_or_default(),
        }
    }
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
struct InfoQuery<'a> {
    export_name: &'a [u8],
    wants_name: bool,
    wants_description: bool,
}

impl<'a> InfoQuery<'a> {
    /// `None` if the data is not well formed to its last byte. Repeated requests count once, or a small
    /// option would get a large answer.
    fn parse(data: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(data);
        let export_name = reader.string()?;
        if export_name.len() > spec::STRING_BYTES_MAX {
            return None;
        }
        let count = reader.u16()?;
        let mut query = Self { export_name, wants_name: false, wants_description: false };
        for _ in 0..count {
            match reader.u16()? {
                spec::NBD_INFO_NAME => query.wants_name = true,
                spec::NBD_INFO_DESCRIPTION => query.wants_description = true,
                // The others are told always, or are unknown and ignored.
                _ => {}
            }
        }
        reader.is_empty().then_some(query)
    }
}

enum Found<'e> {
    Ready(usize, &'e Export),
    Refused(&'e str),
    Unknown,
}

fn find<'e>(name: &[u8], exports: &'e [Export]) -> Found<'e> {
    let named = exports.iter().enumerate().find(|(_, export)| export.name.as_bytes() == name);
    match named {
        None => Found::Unknown,
        Some((index, export)) => match &export.availability {
            Availability::Ready => Found::Ready(index, export),
            Availability::Refused { message } => Found::Refused(message),
        },
    }
}
