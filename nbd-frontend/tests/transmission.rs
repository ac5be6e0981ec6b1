//! The transmission phase: requests in, replies out. Bytes in hexadecimal are written from the specification.

mod support;

use nbd_frontend::{
    BASE_ALLOCATION_ID, Command, Context, ContextKind, ERROR_BYTES_MAX, ERROR_MESSAGE_BYTES_MAX, EXTENTS_MAX,
    Extent, NbdError, OK_BYTES_MAX, READ_HEADER_BYTES_MAX, Reject, ReplyFormat, ReplyTag, Request,
    SessionError, Step,
};
use support::{COOKIE, STYLES, Style, entered, feed, hex, request};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST: u16 = 16;
const PAYLOAD: u16 = 32;

/// What one request comes to, its payload aside.
fn judge(style: Style, name: &str, flags: u16, kind: u16, offset: u64, length_bytes: u64) -> Step {
    let mut session = entered(style, name);
    let heard = feed(&mut session, &request(style, flags, kind, offset, length_bytes));
    assert_eq!((heard.error, heard.steps.len()), (None, 1), "kind {kind} flags {flags}");
    heard.steps[0]
}

fn error_of(step: Step) -> Option<NbdError> {
    match step {
        Step::Reject(reject) => Some(reject.error),
        Step::Request(_) => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_compact_request_to_the_byte() {
    let mut session = entered(Style::Simple, "fine");
    let bytes = hex("25609513 0001 0001 1122334455667788 0000000000003000 00000200");
    let heard = feed(&mut session, &[bytes, vec![7; 512]].concat());
    let command = Command::Write { fua: true };
    let expected = Request { cookie: 0x1122_3344_5566_7788, command, offset: 0x3000, length_bytes: 512 };
    assert_eq!(heard.steps, [Step::Request(expected)]);
}

#[test]
fn an_extended_request_to_the_byte() {
    let mut session = entered(Style::Extended, "coarse");
    let bytes = hex("21e41c71 0002 0006 1122334455667788 0000000080000000 0000000140000000");
    let heard = feed(&mut session, &bytes);
    let command = Command::WriteZeroes { fua: false, no_hole: true, fast: false };
    let expected =
        Request { cookie: 0x1122_3344_5566_7788, command, offset: 0x8000_0000, length_bytes: 0x1_4000_0000 };
    assert_eq!(heard.steps, [Step::Request(expected)]);
}

#[test]
fn every_command_with_its_flags() {
    let zeroes = |fua, no_hole, fast| Command::WriteZeroes { fua, no_hole, fast };
    let cases = [
        (Style::Simple, 0, READ, Command::Read { dont_fragment: false }),
        (Style::Structured, DF, READ, Command::Read { dont_fragment: true }),
        (Style::Extended, DF | FUA, READ, Command::Read { dont_fragment: true }),
        (Style::Simple, 0, WRITE, Command::Write { fua: false }),
        (Style::Structured, FUA, WRITE, Command::Write { fua: true }),
        (Style::Extended, FUA | PAYLOAD, WRITE, Command::Write { fua: true }),
        (Style::Extended, 0, WRITE, Command::Write { fua: false }), // as qemu sends it
        (Style::Simple, 0, TRIM, Command::Trim { fua: false }),
        (Style::Simple, FUA, TRIM, Command::Trim { fua: true }),
        (Style::Simple, 0, CACHE, Command::Cache),
        (Style::Simple, FUA, CACHE, Command::Cache),
        (Style::Simple, 0, ZEROES, zeroes(false, false, false)),
        (Style::Simple, FUA, ZEROES, zeroes(true, false, false)),
        (Style::Simple, NO_HOLE, ZEROES, zeroes(false, true, false)),
        (Style::Simple, FAST, ZEROES, zeroes(false, false, true)),
        (Style::Structured, 0, STATUS, Command::BlockStatus { one: false }),
        (Style::Extended, REQ_ONE | FUA, STATUS, Command::BlockStatus { one: true }),
    ];
    for (style, flags, kind, command) in cases {
        let expected = Request { cookie: COOKIE, command, offset: 4096, length_bytes: 8192 };
        assert_eq!(judge(style, "fine", flags, kind, 4096, 8192), Step::Request(expected));
    }
    let expected = Request { cookie: COOKIE, command: Command::Flush, offset: 0, length_bytes: 0 };
    assert_eq!(judge(Style::Simple, "fine", 0, FLUSH, 0, 0), Step::Request(expected));
    assert_eq!(judge(Style::Simple, "fine", FUA, FLUSH, 0, 0), Step::Request(expected));
}

#[test]
fn flags_are_valid_only_where_they_belong() {
    // For each style and command, the flags that are valid; 6 and above are unknown.
    for style in STYLES {
        let is_extended = style == Style::Extended;
        let has_chunks = style != Style::Simple;
        for (kind, mut valid) in [
            (READ, if has_chunks { DF } else { 0 }),
            (WRITE, if is_extended { PAYLOAD } else { 0 }),
            (FLUSH, 0),
            (TRIM, 0),
            (CACHE, 0),
            (ZEROES, NO_HOLE | FAST),
            (STATUS, REQ_ONE | if is_extended { PAYLOAD } else { 0 }),
        ] {
            valid |= FUA;
            if kind == STATUS && !has_chunks {
                continue; // not negotiated at all
            }
            for flag in (0..16).map(|bit| 1 << bit) {
                let (offset, length_bytes) = if kind == FLUSH { (0, 0) } else { (4096, 4096) };
                let step = judge(style, "fine", flag, kind, offset, length_bytes);
                // The payload of a status request has a length of its own; tested below.
                let is_status_payload = kind == STATUS && flag == PAYLOAD;
                let expected =
                    if valid & flag != 0 && !is_status_payload { None } else { Some(NbdError::Invalid) };
                assert_eq!(error_of(step), expected, "{style:?} command {kind} flag {flag:#x}");
            }
        }
    }
}

#[test]
fn what_was_not_offered_is_invalid() {
    for (flags, kind) in
        [(0, TRIM), (0, CACHE), (0, ZEROES), (0, STATUS), (FUA, READ), (FUA, WRITE), (0, 8), (0, 99)]
    {
        assert_eq!(error_of(judge(Style::Simple, "", flags, kind, 4096, 4096)), Some(NbdError::Invalid));
    }
    assert_eq!(error_of(judge(Style::Simple, "", 0, FLUSH, 0, 0)), Some(NbdError::Invalid));
    assert_eq!(error_of(judge(Style::Simple, "", 0, READ, 4096, 4096)), None);
}

#[test]
fn a_read_only_export_permits_no_write() {
    for style in STYLES {
        let payload = if style == Style::Extended { PAYLOAD } else { 0 };
        for (flags, kind, error) in [
            (payload, WRITE, Some(NbdError::Permission)),
            (0, TRIM, Some(NbdError::Permission)),
            (0, ZEROES, Some(NbdError::Permission)),
            (0, READ, None),
            (0, CACHE, None),
        ] {
            let step = judge(style, "frozen", flags, kind, 0, 4096);
            assert_eq!(error_of(step), error, "{style:?} command {kind}");
            if let (WRITE, Step::Reject(reject)) = (kind, step) {
                assert_eq!(reject.drain_bytes, 4096);
            }
        }
        assert_eq!(error_of(judge(style, "frozen", 0, FLUSH, 0, 0)), None);
    }
}

#[test]
fn ranges_beyond_the_end() {
    const END: u64 = 1 << 20;
    for (kind, error) in [
        (READ, NbdError::Invalid),
        (WRITE, NbdError::NoSpace),
        (TRIM, NbdError::Invalid),
        (CACHE, NbdError::Invalid),
        (ZEROES, NbdError::NoSpace),
        (STATUS, NbdError::Invalid),
    ] {
        for style in [Style::Structured, Style::Extended] {
            let flags = if kind == WRITE && style == Style::Extended { PAYLOAD } else { 0 };
            let judged = |offset, length| error_of(judge(style, "fine", flags, kind, offset, length));
            assert_eq!(judged(0, END), None);
            assert_eq!(judged(END - 1, 1), None);
            for (offset, length) in [(END, 1), (END - 1, 2), (0, END + 1), (u64::MAX, 1), (u64::MAX, 4096)] {
                assert_eq!(judged(offset, length), Some(error), "command {kind} at {offset} of {length}");
            }
            assert_eq!(judged(4096, 0), Some(NbdError::Invalid), "command {kind} of nothing");
        }
    }
    assert_eq!(error_of(judge(Style::Extended, "fine", 0, TRIM, 1, u64::MAX)), Some(NbdError::Invalid));
}

#[test]
fn ranges_are_aligned_to_the_minimum_block() {
    for kind in [READ, WRITE, TRIM, CACHE, ZEROES, STATUS] {
        for (offset, length, error) in [
            (4096, 8192, None),
            (512, 4096, Some(NbdError::Invalid)),
            (4096, 512, Some(NbdError::Invalid)),
            (4095, 4097, Some(NbdError::Invalid)),
        ] {
            assert_eq!(error_of(judge(Style::Structured, "coarse", 0, kind, offset, length)), error);
        }
    }
}

#[test]
fn only_data_is_held_to_the_maximum() {
    const MAX: u64 = 64 << 10;
    let over = MAX + 4096;
    for style in STYLES {
        let payload = if style == Style::Extended { PAYLOAD } else { 0 };
        let judged = |flags, kind, length| error_of(judge(style, "coarse", flags, kind, 0, length));
        let of_read = if style == Style::Simple { NbdError::Invalid } else { NbdError::Overflow };
        assert_eq!(judged(0, READ, MAX), None);
        assert_eq!(judged(0, READ, over), Some(of_read));
        assert_eq!(judged(payload, WRITE, MAX), None);
        assert_eq!(judged(payload, WRITE, over), Some(NbdError::Invalid));
        for kind in [TRIM, CACHE, ZEROES] {
            assert_eq!(judged(0, kind, over), None);
            assert_eq!(judged(0, kind, 0xffff_f000), None);
        }
    }
    let step = judge(Style::Extended, "coarse", 0, ZEROES, 0, 8 << 30);
    assert!(matches!(step, Step::Request(Request { length_bytes: 0x2_0000_0000, .. })));
}

#[test]
fn a_flush_has_no_range() {
    for (offset, length) in [(4096, 0), (0, 4096)] {
        assert_eq!(error_of(judge(Style::Simple, "fine", 0, FLUSH, offset, length)), Some(NbdError::Invalid));
    }
}

#[test]
fn a_write_of_33_mib_is_rejected_and_the_stream_stays_in_step() {
    let length_bytes = 33 << 20;
    for style in STYLES {
        let flags = if style == Style::Extended { PAYLOAD } else { 0 };
        let mut session = entered(style, "fine");
        let mut bytes = request(style, flags, WRITE, 0, length_bytes);
        bytes.resize(bytes.len() + length_bytes as usize, 0x25);
        bytes.extend(request(style, 0, READ, 0, 512));
        let heard = feed(&mut session, &bytes);
        let reason = "write is longer than the maximum";
        let (error, drain_bytes) = (NbdError::Invalid, length_bytes);
        let reject = Reject { cookie: COOKIE, offset: 0, error, reason, drain_bytes };
        let command = Command::Read { dont_fragment: false };
        let read = Request { cookie: COOKIE, command, offset: 0, length_bytes: 512 };
        assert_eq!(heard.steps, [Step::Reject(reject), Step::Request(read)]);
    }
}

#[test]
fn an_absurd_payload_ends_the_session() {
    let most = 256 << 20;
    let cases: [(Style, u16, u16, u64); 5] = [
        (Style::Simple, 0, WRITE, most + 1),
        (Style::Structured, 0, WRITE, u32::MAX as u64),
        (Style::Extended, PAYLOAD, WRITE, most + 1),
        (Style::Extended, PAYLOAD, READ, 1 << 40),
        (Style::Extended, PAYLOAD, 99, u64::MAX),
    ];
    for (style, flags, kind, length_bytes) in cases {
        let mut session = entered(style, "fine");
        let heard = feed(&mut session, &request(style, flags, kind, 0, length_bytes));
        assert_eq!(heard.error, Some(SessionError::PayloadTooLarge { length_bytes }));
        assert!(session.negotiated().is_some(), "replies outstanding still need their format");
        let step = judge(style, "fine", flags, kind, 0, most);
        assert!(matches!(step, Step::Reject(reject) if reject.drain_bytes == most));
    }
}

#[test]
fn payload_is_drained_exactly_where_there_is_some() {
    let drained = |style, flags, kind, length| match judge(style, "coarse", flags, kind, 1, length) {
        Step::Reject(reject) => reject.drain_bytes,
        other => panic!("{other:?}"),
    };
    // Without extended headers a write has a payload and nothing else does, whatever the flags say.
    assert_eq!(drained(Style::Simple, 0, WRITE, 4096), 4096);
    assert_eq!(drained(Style::Simple, PAYLOAD, WRITE, 4096), 4096);
    assert_eq!(drained(Style::Simple, PAYLOAD, READ, 4096), 0);
    assert_eq!(drained(Style::Simple, 0, 99, 4096), 0);
    // With them the flag decides, whatever the command is; but a write has one even without it.
    assert_eq!(drained(Style::Extended, 0, WRITE, 4096), 4096);
    assert_eq!(drained(Style::Extended, PAYLOAD, WRITE, 4096), 4096);
    assert_eq!(drained(Style::Extended, PAYLOAD, WRITE, 0), 0);
    assert_eq!(drained(Style::Extended, PAYLOAD, READ, 4096), 4096);
    assert_eq!(drained(Style::Extended, PAYLOAD, FLUSH, 3), 3);
    assert_eq!(drained(Style::Extended, PAYLOAD, 99, 4096), 4096);
    assert_eq!(drained(Style::Extended, 0, 99, 1 << 40), 0);
}

#[test]
fn bad_magic_ends_the_session() {
    for (style, wrong) in [(Style::Structured, Style::Extended), (Style::Extended, Style::Simple)] {
        let mut session = entered(style, "fine");
        let bytes = [request(wrong, 0, READ, 0, 512), vec![0; 8]].concat();
        let magic = u32::from_be_bytes(bytes[..4].try_into().unwrap());
        assert_eq!(feed(&mut session, &bytes).error, Some(SessionError::RequestMagic(magic)));
        assert_eq!(feed(&mut session, &bytes).error, Some(SessionError::RequestMagic(magic)));
    }
}

#[test]
fn disc_is_the_end_whatever_its_fields() {
    for style in STYLES {
        for (flags, length_bytes) in [(0, 0), (0xffff, u64::MAX)] {
            assert_eq!(judge(style, "fine", flags, DISC, 5, length_bytes), Step::Disconnect);
        }
    }
}

/// What a block status request with this payload comes to; a flush follows it.
fn judge_payload(name: &str, payload: &str) -> Vec<Step> {
    let payload = hex(payload);
    let mut session = entered(Style::Extended, name);
    let header = request(Style::Extended, PAYLOAD, STATUS, 4096, payload.len() as u64);
    let heard = feed(&mut session, &[header, payload, request(Style::Extended, 0, FLUSH, 0, 0)].concat());
    assert_eq!((heard.error, heard.steps.len()), (None, 2));
    heard.steps
}

#[test]
fn block_status_may_name_its_context_in_a_payload() {
    let steps = judge_payload("fine", "0000000000002000 00000001");
    let command = Command::BlockStatus { one: false };
    let expected = Request { cookie: COOKIE, command, offset: 4096, length_bytes: 8192 };
    assert_eq!(steps[0], Step::Request(expected));
    for (payload, drain_bytes) in [
        ("0000000000002000 00000000", 0),           // unknown id
        ("0000000000002000 00000002", 0),           // unknown id
        ("0000000000000000 00000001", 0),           // no length
        ("0000000000100000 00000001", 0),           // beyond the end
        ("ffffffffffffffff 00000001", 0),           // far beyond the end
        ("0000000000002000", 8),                    // no id
        ("0000000000002000 00000001 00000001", 16), // the same twice
        ("0000000000002000 000000", 11),
        ("00", 1),
        ("", 0),
    ] {
        let steps = judge_payload("fine", payload);
        let Step::Reject(reject) = steps[0] else { panic!("{payload}: {:?}", steps[0]) };
        assert_eq!((reject.error, reject.drain_bytes), (NbdError::Invalid, drain_bytes), "{payload}");
        assert!(matches!(steps[1], Step::Request(Request { command: Command::Flush, .. })), "{payload}");
    }
}

#[test]
fn block_status_payload_without_a_context_is_drained() {
    let mut session = support::greeted(3);
    let mut bytes = support::option(11, b"");
    bytes.extend(support::option(7, &support::info("fine", &[])));
    bytes.extend(request(Style::Extended, PAYLOAD, STATUS, 0, 12));
    let heard = feed(&mut session, &bytes);
    assert!(matches!(heard.steps[..], [Step::Negotiated, Step::Reject(Reject { drain_bytes: 12, .. })]));
}

const TAG: ReplyTag = ReplyTag { cookie: 0x1122_3344_5566_7788, offset: 0x9000 };

#[test]
fn successes_to_the_byte() {
    for (format, expected) in [
        (ReplyFormat::Simple, "67446698 00000000 1122334455667788"),
        (ReplyFormat::Structured, "668e33ef 0001 0000 1122334455667788 00000000"),
        (ReplyFormat::Extended, "6e8a278c 0001 0000 1122334455667788 0000000000009000 0000000000000000"),
    ] {
        let mut out = [0xee; OK_BYTES_MAX];
        let length = format.encode_ok(TAG, &mut out);
        assert_eq!(out[..length], hex(expected));
    }
}

#[test]
fn read_headers_to_the_byte() {
    for (format, expected) in [
        (ReplyFormat::Simple, "67446698 00000000 1122334455667788"),
        (ReplyFormat::Structured, "668e33ef 0001 0001 1122334455667788 00001008 0000000000009000"),
        (
            ReplyFormat::Extended,
            "6e8a278c 0001 0001 1122334455667788 0000000000009000 0000000000001008 0000000000009000",
        ),
    ] {
        let mut out = [0xee; READ_HEADER_BYTES_MAX];
        let length = format.encode_read_header(TAG, 4096, &mut out);
        assert_eq!(out[..length], hex(expected));
    }
    let mut out = [0; READ_HEADER_BYTES_MAX];
    let length = ReplyFormat::Structured.encode_read_header(TAG, 0, &mut out);
    assert_eq!(out[..length], hex("668e33ef 0001 0000 1122334455667788 00000000"));
}

#[test]
fn errors_to_the_byte() {
    for (format, expected) in [
        (ReplyFormat::Simple, "67446698 00000005 1122334455667788"),
        (ReplyFormat::Structured, "668e33ef 0001 8001 1122334455667788 0000000a 00000005 0004 6469736b"),
        (
            ReplyFormat::Extended,
            "6e8a278c 0001 8001 1122334455667788 0000000000009000 000000000000000a 00000005 0004 6469736b",
        ),
    ] {
        let mut out = [0xee; ERROR_BYTES_MAX];
        let length = format.encode_error(TAG, NbdError::Io, "disk", &mut out);
        assert_eq!(out[..length], hex(expected));
    }
    let mut out = [0; ERROR_BYTES_MAX];
    let length = ReplyFormat::Extended.encode_error(TAG, NbdError::Io, &"x".repeat(9999), &mut out);
    assert_eq!((length, &out[36..38]), (256, &(ERROR_MESSAGE_BYTES_MAX as u16).to_be_bytes()[..]));
}

#[test]
fn error_values_are_those_of_the_specification() {
    let values = [
        (NbdError::Permission, 1),
        (NbdError::Io, 5),
        (NbdError::NoMemory, 12),
        (NbdError::Invalid, 22),
        (NbdError::NoSpace, 28),
        (NbdError::Overflow, 75),
        (NbdError::NotSupported, 95),
        (NbdError::Shutdown, 108),
    ];
    for (error, code) in values {
        assert_eq!(error.code(), code);
        assert_eq!(NbdError::from_errno(code as i32), error);
    }
    let others =
        [(30, NbdError::Permission), (27, NbdError::NoSpace), (122, NbdError::NoSpace), (0, NbdError::Io)];
    for (errno, error) in others {
        assert_eq!(NbdError::from_errno(errno), error);
    }
}

fn status_request(one: bool, length_bytes: u64) -> Request {
    let command = Command::BlockStatus { one };
    Request { cookie: TAG.cookie, command, offset: TAG.offset, length_bytes }
}

fn status(format: ReplyFormat, one: bool, length_bytes: u64, extents: &[(u64, bool, bool)]) -> Vec<u8> {
    let extents =
        extents.iter().map(|&(length_bytes, hole, zero)| Extent::allocation(length_bytes, hole, zero));
    let context = Context { id: BASE_ALLOCATION_ID, kind: ContextKind::Allocation };
    let mut out = b"before".to_vec();
    format.encode_block_status(&status_request(one, length_bytes), &context, true, extents, &mut out);
    assert_eq!(&out[..6], b"before");
    out.split_off(6)
}

#[test]
fn block_status_to_the_byte() {
    let extents = [(4096, false, false), (8192, true, true)];
    let expected =
        "668e33ef 0001 0005 1122334455667788 00000014 00000001 00001000 00000000 00002000 00000003";
    assert_eq!(status(ReplyFormat::Structured, false, 12288, &extents), hex(expected));
    let expected = [
        "6e8a278c 0001 0006 1122334455667788 0000000000009000 0000000000000028 00000001 00000002",
        "0000000000001000 0000000000000000 0000000000002000 0000000000000003",
    ];
    assert_eq!(status(ReplyFormat::Extended, false, 12288, &extents), hex(&expected.concat()));
    let expected = "67446698 00000016 1122334455667788";
    assert_eq!(status(ReplyFormat::Simple, false, 12288, &extents), hex(expected));
}

#[test]
fn what_changed_since_a_bookmark_is_a_chunk_of_its_own() {
    let dirty = Context { id: 2, kind: ContextKind::Dirty("monday".to_owned()) };
    let request = status_request(false, 12288);
    let mut out = Vec::new();
    ReplyFormat::Structured.encode_block_status(&request, &dirty, false, [], &mut out);
    let extents = [Extent::change(4096, false), Extent::change(8192, true)];
    ReplyFormat::Structured.encode_block_status(&request, &dirty, true, extents, &mut out);
    // Of what nothing is known everything has changed; only the last chunk ends the reply.
    let expected = [
        "668e33ef 0000 0005 1122334455667788 0000000c 00000002 00003000 00000001",
        "668e33ef 0001 0005 1122334455667788 00000014 00000002 00001000 00000000 00002000 00000001",
    ];
    assert_eq!(out, hex(&expected.concat()));
}

/// The descriptors of a structured block status.
fn descriptors(one: bool, length_bytes: u64, extents: &[(u64, bool, bool)]) -> Vec<(u32, u32)> {
    let reply = status(ReplyFormat::Structured, one, length_bytes, extents);
    let word = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
    assert_eq!(word(&reply[16..20]) as usize, reply.len() - 20);
    reply[24..].chunks(8).map(|each| (word(&each[..4]), word(&each[4..]))).collect()
}

#[test]
fn block_status_says_as_much_as_is_asked_and_known() {
    let (data, zero, hole) = ((4096, false, false), (4096, false, true), (4096, true, false));
    assert_eq!(descriptors(false, 12288, &[data, zero, hole]), [(4096, 0), (4096, 2), (4096, 1)]);
    // Neighbours of one state become one, even across nothing.
    assert_eq!(descriptors(false, 12288, &[data, (0, true, true), data, zero]), [(8192, 0), (4096, 2)]);
    assert_eq!(descriptors(true, 12288, &[data, data, zero]), [(8192, 0)]);
    // Never beyond the end of the request; knowing less is no error.
    assert_eq!(descriptors(false, 6144, &[data, zero, hole]), [(4096, 0), (2048, 2)]);
    assert_eq!(descriptors(false, 4096, &[data, zero, hole]), [(4096, 0)]);
    assert_eq!(descriptors(false, 4096, &[(u64::MAX, true, true), data]), [(4096, 3)]);
    assert_eq!(descriptors(false, 1 << 20, &[zero]), [(4096, 2)]);
    // Nothing known.
    assert_eq!(descriptors(true, 1 << 20, &[]), [(1 << 20, 0)]);
    assert_eq!(descriptors(false, 1 << 20, &[(0, true, true)]), [(1 << 20, 0)]);
}

#[test]
fn block_status_is_bounded() {
    let many: Vec<_> = (0..EXTENTS_MAX as u64 + 9).map(|index| (512, index % 2 == 0, false)).collect();
    let all = descriptors(false, 1 << 30, &many);
    assert_eq!((all.len(), all[EXTENTS_MAX - 1]), (EXTENTS_MAX, (512, 0)));
    assert_eq!(descriptors(false, 1 << 30, &many[..EXTENTS_MAX]).len(), EXTENTS_MAX);
}
