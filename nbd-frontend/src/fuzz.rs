//! Feeds hostile bytes to a session and asserts what must hold on any of them. Not a judge of single replies.
//!
//! The first eight bytes are the seed: the shape of the stream and where it is cut. The rest is the stream,
//! either as it is, or as choices from which well-formed messages are made, to get behind the magic numbers.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};

use crate::bytes::field;
use crate::{
    Advance, Availability, BASE_ALLOCATION_ID, BlockSizes, Command, Context, ContextKind, ERROR_BYTES_MAX,
    EXTENTS_MAX, Export, ExportFlags, Extent, NbdError, Negotiated, OK_BYTES_MAX, PAYLOAD_BYTES_MAX,
    READ_HEADER_BYTES_MAX, Reject, ReplyFormat, ReplyTag, Request, Session, SessionError, Step, spec,
};

/// Panics if any bytes make a session do what it must not: take more than it was given, stand still, queue
/// without bound, let a wrong request through, or depend on how the stream was cut.
pub fn fuzz_session(data: &[u8]) {
    let mut seed = [0; 8];
    let length = data.len().min(8);
    seed[..length].copy_from_slice(&data[..length]);
    let seed = u64::from_be_bytes(seed);
    let stream = stream(seed, &data[length..]);
    for begin in [Session::new, Session::requiring_tls] {
        let whole = run(begin(), &stream, |left| left);
        let mut random = Random(seed | 1);
        let sliced = run(begin(), &stream, |left| {
            let count_max = if random.below(8) == 0 { 300 } else { 17 };
            left.min(1 + random.below(count_max) as usize)
        });
        assert_eq!(whole, sliced, "the result depends on how the stream was cut");
    }
    let heard = run(Session::requiring_tls(), &stream, |left| left);
    let secured = heard.steps.iter().position(|step| *step == Step::StartTls);
    let entered = heard.steps.iter().position(|step| *step == Step::Negotiated);
    assert!(entered.is_none() || secured < entered && secured.is_some(), "an export is had in the clear");
}

/// Exports that differ in what a session must hold them to.
#[must_use]
pub fn exports() -> Vec<Export> {
    let all = ExportFlags {
        read_only: false,
        rotational: true,
        flush: true,
        fua: true,
        trim: true,
        write_zeroes: true,
        fast_zero: true,
        cache: true,
        multi_conn: true,
    };
    let fine = BlockSizes { min_bytes: 1, preferred_bytes: 4096, max_bytes: 32 << 20 };
    let coarse = BlockSizes { min_bytes: 4096, preferred_bytes: 4096, max_bytes: 64 << 10 };
    let export = |name: &str, size_bytes, flags, block| Export {
        name: name.to_owned(),
        description: format!("the {name} export"),
        size_bytes,
        flags,
        block,
        availability: Availability::Ready,
        bookmarks: if name == "frozen" {
            vec!["monday".to_owned(), "tuesday".to_owned()]
        } else {
            Vec::new()
        },
    };
    let mut away = export("away", 1 << 20, all, coarse);
    away.availability = Availability::Refused { message: "away is Secondary on this node".to_owned() };
    let mut bare = export("", 1 << 20, ExportFlags::default(), fine);
    bare.description = String::new();
    vec![
        export("fine", 1 << 20, all, fine),
        export("coarse", 8 << 30, all, coarse),
        export("frozen", 1 << 20, ExportFlags { read_only: true, ..all }, coarse),
        away,
        bare,
    ]
}

/// All that was seen of a session.
#[derive(Debug, Default, PartialEq, Eq)]
struct Trace {
    output: Vec<u8>,
    steps: Vec<Step>,
    end: Option<SessionError>,
}

fn run(mut session: Session, stream: &[u8], mut slice: impl FnMut(usize) -> usize) -> Trace {
    let exports = exports();
    let mut trace = Trace::default();
    let mut rest = stream;
    for calls in 0.. {
        assert!(calls < 64 + 4 * stream.len(), "stands still");
        let input = &rest[..slice(rest.len())];
        let Advance { consumed, step } = match session.advance(input, &exports) {
            Ok(advance) => advance,
            Err(error) => {
                assert_eq!(session.advance(input, &exports), Err(error), "an end is final");
                trace.end = Some(error);
                break;
            }
        };
        rest = &rest[consumed..];
        assert!(session.output().len() <= 4096, "queues without bound");
        if !matches!(step, Step::NeedInput) {
            trace.steps.push(step);
            trace.output.append(session.output());
        }
        let skip_bytes = match step {
            Step::NeedInput if rest.is_empty() => break,
            Step::NeedInput => {
                assert_eq!(consumed, input.len(), "input is left over");
                0
            }
            Step::SendOutput | Step::StartTls | Step::Negotiated => 0,
            Step::Request(request) => check_request(&request, session.negotiated()),
            Step::Reject(reject) => check_reject(&reject, session.negotiated()),
            Step::Disconnect => {
                let again = session.advance(input, &exports);
                assert_eq!(again, Ok(Advance { consumed: 0, step }), "an end is final");
                break;
            }
        };
        let Some((_, after)) = rest.split_at_checked(skip_bytes as usize) else { break };
        rest = after;
    }
    trace
}

/// Judges a request anew, encodes its replies and says how much payload follows it.
fn check_request(request: &Request, negotiated: Option<&Negotiated>) -> u64 {
    let Some(negotiated) = negotiated else { panic!("a request before the transmission phase") };
    let Request { command, offset, length_bytes, .. } = *request;
    let Negotiated { size_bytes, flags, block, format, ref contexts, .. } = *negotiated;
    let is_write = match command {
        Command::Read { dont_fragment } => {
            assert!(length_bytes <= u64::from(block.max_bytes));
            assert!(!dont_fragment || format != ReplyFormat::Simple);
            false
        }
        Command::Write { fua } => {
            assert!(length_bytes <= u64::from(block.max_bytes) && (!fua || flags.fua));
            true
        }
        Command::Flush => {
            assert!(flags.flush && (offset, length_bytes) == (0, 0));
            return check_replies(request, format);
        }
        Command::Trim { fua } => {
            assert!(flags.trim && (!fua || flags.fua));
            true
        }
        Command::WriteZeroes { fua, fast, .. } => {
            assert!(flags.write_zeroes && (!fua || flags.fua) && (!fast || flags.fast_zero));
            true
        }
        Command::Cache => {
            assert!(flags.cache);
            false
        }
        Command::BlockStatus { .. } => {
            assert!(!contexts.is_empty() && format != ReplyFormat::Simple);
            false
        }
    };
    assert!(!is_write || !flags.read_only, "a write to a read-only export");
    assert!(length_bytes > 0 && u128::from(offset) + u128::from(length_bytes) <= u128::from(size_bytes));
    assert!(offset % u64::from(block.min_bytes) == 0 && length_bytes % u64::from(block.min_bytes) == 0);
    assert!(length_bytes <= u64::from(u32::MAX) || format == ReplyFormat::Extended);
    check_replies(request, format);
    if matches!(command, Command::Write { .. }) { length_bytes } else { 0 }
}

fn check_reject(reject: &Reject, negotiated: Option<&Negotiated>) -> u64 {
    assert!(reject.drain_bytes <= PAYLOAD_BYTES_MAX);
    let Some(negotiated) = negotiated else { panic!("a rejection before the transmission phase") };
    let mut out = [0; ERROR_BYTES_MAX];
    let length = negotiated.format.encode_error(reject.tag(), reject.error, reject.reason, &mut out);
    check_reply(negotiated.format, reject.tag(), &out[..length], 0);
    reject.drain_bytes
}

/// Encodes every reply this request may get; they must tell their own length. No payload follows it.
fn check_replies(request: &Request, format: ReplyFormat) -> u64 {
    let tag = request.tag();
    let mut out = [0; OK_BYTES_MAX];
    let length = format.encode_ok(tag, &mut out);
    check_reply(format, tag, &out[..length], 0);
    let mut out = [0; ERROR_BYTES_MAX];
    let length = format.encode_error(tag, NbdError::Io, "the disk of this node failed", &mut out);
    check_reply(format, tag, &out[..length], 0);
    match request.command {
        Command::Read { .. } => {
            let mut out = [0; READ_HEADER_BYTES_MAX];
            let length = format.encode_read_header(tag, request.length_bytes, &mut out);
            check_reply(format, tag, &out[..length], request.length_bytes);
        }
        Command::BlockStatus { one } => {
            let mut random = Random(request.cookie | 1);
            let extents = (0..random.below(8)).map(|_| {
                let hole = random.below(2) == 0;
                Extent::allocation(random.below(1 << 20), hole, random.below(2) == 0)
            });
            let extents: Vec<Extent> = extents.collect();
            let context = Context { id: BASE_ALLOCATION_ID, kind: ContextKind::Allocation };
            let mut out = vec![0xee; 3];
            format.encode_block_status(request, &context, true, extents, &mut out);
            check_reply(format, tag, &out[3..], 0);
            let (before, each) = if format == ReplyFormat::Extended { (32 + 8, 16) } else { (20 + 4, 8) };
            let count = (out.len() - 3 - before) / each;
            assert!(count >= 1 && count <= if one { 1 } else { EXTENTS_MAX });
        }
        _ => {}
    }
    0
}

fn check_reply(format: ReplyFormat, tag: ReplyTag, reply: &[u8], data_bytes: u64) {
    let (magic, header_bytes) = match format {
        ReplyFormat::Simple => (spec::NBD_SIMPLE_REPLY_MAGIC, 16),
        ReplyFormat::Structured => (spec::NBD_STRUCTURED_REPLY_MAGIC, 20),
        ReplyFormat::Extended => (spec::NBD_EXTENDED_REPLY_MAGIC, 32),
    };
    assert_eq!(u32::from_be_bytes(field(reply, 0)), magic);
    assert_eq!(u64::from_be_bytes(field(reply, 8)), tag.cookie);
    let body_bytes = match format {
        ReplyFormat::Simple => data_bytes,
        ReplyFormat::Structured => u64::from(u32::from_be_bytes(field(reply, 16))),
        ReplyFormat::Extended => {
            assert_eq!(u64::from_be_bytes(field(reply, 16)), tag.offset);
            u64::from_be_bytes(field(reply, 24))
        }
    };
    assert_eq!(reply.len() as u64 + data_bytes, header_bytes + body_bytes);
}

/// The stream that the bytes stand for.
fn stream(seed: u64, body: &[u8]) -> Vec<u8> {
    let mut shaper = Shaper { choices: body, stream: Vec::new() };
    let style = (seed >> 56) % 8;
    if style == 0 {
        return body.to_owned();
    }
    shaper.stream.extend_from_slice(&(style as u32 & 3).to_be_bytes());
    if style > 1 {
        match style % 3 {
            0 => {}
            1 => shaper.put_option(spec::NBD_OPT_STRUCTURED_REPLY, &[]),
            _ => shaper.put_option(spec::NBD_OPT_EXTENDED_HEADERS, &[]),
        }
        let name = shaper.name();
        let query = shaper.meta_query(name, &["base:allocation", "holdfast:dirty:tuesday"]);
        shaper.put_option(spec::NBD_OPT_SET_META_CONTEXT, &query);
        shaper.put_option(spec::NBD_OPT_GO, &info_query(name, &[]));
    } else {
        for _ in 0..shaper.below(12) {
            shaper.put_any_option();
        }
    }
    if style > 5 {
        let rest = shaper.choices;
        shaper.stream.extend_from_slice(rest);
        return shaper.stream;
    }
    while !shaper.choices.is_empty() && shaper.stream.len() < 1 << 20 {
        shaper.put_request(style % 3 == 2);
    }
    shaper.stream
}

/// Makes messages of choices; zero when they run out.
struct Shaper<'a> {
    choices: &'a [u8],
    stream: Vec<u8>,
}

impl Shaper<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.choices.split_first() else { return 0 };
        self.choices = rest;
        *first
    }

    fn below(&mut self, limit: u8) -> usize {
        usize::from(self.byte() % limit)
    }

    fn name(&mut self) -> &'static str {
        ["fine", "coarse", "frozen", "fine", "coarse", "away", "", "missing"][self.below(8)]
    }

    fn meta_query(&self, name: &str, queries: &[&str]) -> Vec<u8> {
        let mut data = string(name);
        data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
        queries.iter().for_each(|query| data.extend(string(query)));
        data
    }

    fn put_option(&mut self, option: u32, data: &[u8]) {
        self.stream.extend_from_slice(&spec::IHAVEOPT.to_be_bytes());
        self.stream.extend_from_slice(&option.to_be_bytes());
        self.stream.extend_from_slice(&(data.len() as u32).to_be_bytes());
        self.stream.extend_from_slice(data);
    }

    fn put_any_option(&mut self) {
        let option = self.below(14) as u32;
        let name = self.name();
        let mut data = match option {
            spec::NBD_OPT_EXPORT_NAME => name.as_bytes().to_owned(),
            spec::NBD_OPT_INFO | spec::NBD_OPT_GO => {
                let infos: Vec<u16> = (0..self.below(6)).map(|_| self.below(6) as u16).collect();
                info_query(name, &infos)
            }
            spec::NBD_OPT_LIST_META_CONTEXT | spec::NBD_OPT_SET_META_CONTEXT => {
                let all = ["base:allocation", "base:", "qemu:x", "holdfast:dirty:monday", "holdfast:", ""];
                let queries: Vec<&str> = (0..self.below(4)).map(|_| all[self.below(5)]).collect();
                self.meta_query(name, &queries)
            }
            _ => Vec::new(),
        };
        match self.below(16) {
            0 => data.push(0),
            1 => data.truncate(data.len() / 2),
            2 => data.resize(70_000, 1),
            3 => {
                let at = self.byte() as usize % data.len().max(1);
                let flip = self.byte();
                data.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= flip);
            }
            _ => {}
        }
        self.put_option(option, &data);
    }

    fn put_request(&mut self, is_extended: bool) {
        let flags = u16::from(self.byte() & self.byte() & 0x7f);
        let kind = self.below(9) as u16;
        let raw = u64::from(self.byte());
        let offset =
            [0, 4096, raw, raw << 12, (1 << 20) - 4096, (8 << 30) - 4096, 1 << 63, u64::MAX][self.below(8)];
        let length_bytes = [4096, 1, raw, 12, 8, 64 << 10, (64 << 10) + 1, 1 << 20, 0, 5 << 30, u64::MAX];
        let length_bytes = length_bytes[self.below(11)];
        let magic = if is_extended { spec::NBD_EXTENDED_REQUEST_MAGIC } else { spec::NBD_REQUEST_MAGIC };
        self.stream.extend_from_slice(&magic.to_be_bytes());
        self.stream.extend_from_slice(&flags.to_be_bytes());
        self.stream.extend_from_slice(&kind.to_be_bytes());
        self.stream.extend_from_slice(&(raw << 32 | u64::from(kind)).to_be_bytes());
        self.stream.extend_from_slice(&offset.to_be_bytes());
        let has_payload = if is_extended {
            self.stream.extend_from_slice(&length_bytes.to_be_bytes());
            flags & spec::NBD_CMD_FLAG_PAYLOAD_LEN != 0 || kind == spec::NBD_CMD_WRITE
        } else {
            self.stream.extend_from_slice(&(length_bytes as u32).to_be_bytes());
            kind == spec::NBD_CMD_WRITE
        };
        if has_payload {
            let mut payload = vec![0; length_bytes.min(128 << 10) as usize];
            // Half of the time the one payload that means something.
            if let [.., effect, _, _, _, id] = &mut payload[..] {
                (*effect, *id) = (raw as u8, self.byte() & 1);
            }
            self.stream.extend_from_slice(&payload);
        }
    }
}

fn string(text: &str) -> Vec<u8> {
    let mut data = (text.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(text.as_bytes());
    data
}

fn info_query(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend_from_slice(&(infos.len() as u16).to_be_bytes());
    infos.iter().for_each(|info| data.extend_from_slice(&info.to_be_bytes()));
    data
}

/// A small generator of its own: one seed, one run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
