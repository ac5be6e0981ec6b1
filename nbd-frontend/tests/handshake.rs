//! The handshake, option by option. Bytes in hexadecimal are written from the specification.

mod support;

use nbd_frontend::{BlockSizes, ExportError, ReplyFormat, Session, SessionError, Step, fuzz, spec};
use support::{export, feed, greeted, hex, info, kinds, meta, option, replies, string};

const ACK: u32 = 1;
const UNSUP: u32 = 0x8000_0001;
const POLICY: u32 = 0x8000_0002;
const INVALID: u32 = 0x8000_0003;
const UNKNOWN: u32 = 0x8000_0006;
const TOO_BIG: u32 = 0x8000_0009;
const EXT_HEADER_REQD: u32 = 0x8000_000a;

#[test]
fn the_greeting_is_fixed_newstyle_without_zeroes() {
    let mut session = Session::new();
    assert_eq!(*session.output(), hex("4e42444d41474943 49484156454f5054 0003"));
}

#[test]
fn nothing_is_read_while_the_greeting_waits() {
    let mut session = Session::new();
    let advance = session.advance(&[0, 0, 0, 3], &[]).unwrap();
    assert_eq!((advance.consumed, advance.step), (0, Step::SendOutput));
}

#[test]
fn unknown_client_flags_end_the_session() {
    for flags in [4u32, 0x8000_0003, u32::MAX] {
        let mut session = Session::new();
        assert_eq!(feed(&mut session, &flags.to_be_bytes()).error, Some(SessionError::ClientFlags(flags)));
    }
}

#[test]
fn go_tells_size_flags_and_block_sizes_then_enters() {
    let mut session = greeted(3);
    // IHAVEOPT, NBD_OPT_GO, 16 bytes: "coarse", two infos: NBD_INFO_NAME, NBD_INFO_DESCRIPTION
    let go = "49484156454f5054 00000007 00000010 00000006 636f61727365 0002 0001 0002";
    let heard = feed(&mut session, &hex(go));
    let expected = [
        "0003e889045565a9 00000007 00000003 0000000c  0000 0000000200000000 0d7d",
        "0003e889045565a9 00000007 00000003 0000000e  0003 00001000 00001000 00010000",
        "0003e889045565a9 00000007 00000003 00000008  0001 636f61727365",
        "0003e889045565a9 00000007 00000003 00000013  0002 74686520636f61727365206578706f7274",
        "0003e889045565a9 00000007 00000001 00000000",
    ];
    assert_eq!(heard.output, hex(&expected.concat()));
    assert_eq!(heard.steps, [Step::Negotiated]);
    let negotiated = session.negotiated().unwrap();
    assert_eq!((negotiated.export_index, &*negotiated.export_name), (1, "coarse"));
    assert_eq!((negotiated.format, negotiated.contexts.len()), (ReplyFormat::Simple, 0));
}

#[test]
fn info_tells_the_same_and_stays() {
    let mut session = greeted(3);
    let first = feed(&mut session, &option(6, &info("fine", &[3, 1])));
    assert_eq!(first.steps, []);
    assert!(session.negotiated().is_none());
    let second = feed(&mut session, &option(7, &info("fine", &[3, 1])));
    let bodies =
        |output: &[u8]| replies(output).into_iter().map(|(_, kind, data)| (kind, data)).collect::<Vec<_>>();
    assert_eq!(bodies(&first.output), bodies(&second.output));
    assert_eq!(second.steps, [Step::Negotiated]);
}

#[test]
fn infos_asked_for_many_times_are_told_once() {
    let mut session = greeted(3);
    let many: Vec<u16> = (0..9000).map(|index| index % 5).collect();
    assert_eq!(kinds(&mut session, 6, &info("fine", &many)), [3, 3, 3, 3, ACK]);
}

#[test]
fn an_empty_description_is_not_told() {
    let mut session = greeted(3);
    assert_eq!(kinds(&mut session, 6, &info("", &[2])), [3, 3, ACK]);
}

#[test]
fn export_name_is_followed_by_124_zeroes_unless_declined() {
    for (client_flags, zeroes) in [(0u32, 124), (1, 124), (2, 0), (3, 0)] {
        let mut session = greeted(client_flags);
        let heard = feed(&mut session, &option(1, b"frozen"));
        let mut expected = hex("0000000000100000 051f");
        expected.resize(10 + zeroes, 0);
        assert_eq!(heard.output, expected);
        assert_eq!(heard.steps, [Step::Negotiated]);
    }
}

#[test]
fn export_name_cannot_say_no_but_by_closing() {
    let long = "x".repeat(4097);
    let cases = [
        ("missing", SessionError::ExportUnknown),
        ("fin", SessionError::ExportUnknown),
        ("away", SessionError::ExportRefused),
        (&*long, SessionError::NameTooLong),
    ];
    for (name, error) in cases {
        let mut session = greeted(3);
        assert_eq!(feed(&mut session, &option(1, name.as_bytes())).error, Some(error));
    }
    let mut session = greeted(3);
    assert_eq!(kinds(&mut session, 11, b""), [ACK]);
    let error = SessionError::ExportNameWithExtendedHeaders;
    assert_eq!(feed(&mut session, &option(1, b"fine")).error, Some(error));
}

#[test]
fn go_says_why_not_and_goes_on() {
    let mut session = greeted(3);
    for kind in [6, 7] {
        let heard = feed(&mut session, &option(kind, &info("missing", &[])));
        assert_eq!(replies(&heard.output), [(kind, UNKNOWN, b"no export of that name".to_vec())]);
        let heard = feed(&mut session, &option(kind, &info("away", &[])));
        assert_eq!(replies(&heard.output), [(kind, POLICY, b"away is Secondary on this node".to_vec())]);
    }
    assert_eq!(kinds(&mut session, 7, &info("fine", &[])), [3, 3, ACK]);
    assert!(session.negotiated().is_some());
}

#[test]
fn malformed_go_is_invalid_whichever_byte_is_missing_or_extra() {
    let good = info("fine", &[1, 3]);
    let mut session = greeted(3);
    for length in 0..good.len() {
        assert_eq!(kinds(&mut session, 7, &good[..length]), [INVALID], "{length} bytes");
    }
    assert_eq!(kinds(&mut session, 7, &[&good[..], &[0]].concat()), [INVALID]);
    assert_eq!(kinds(&mut session, 7, &info(&"x".repeat(4097), &[])), [INVALID]);
    assert_eq!(kinds(&mut session, 7, &info(&"x".repeat(4096), &[])), [UNKNOWN]);
    assert_eq!(kinds(&mut session, 7, &hex("ffffffff 00000000")), [INVALID]);
    assert_eq!(kinds(&mut session, 7, &good), [3, 3, 3, ACK]);
}

#[test]
fn list_names_all_exports_even_those_refused() {
    let mut session = greeted(3);
    let heard = feed(&mut session, &option(3, b""));
    let mut expected: Vec<_> = fuzz::exports()
        .into_iter()
        .map(|export| (3, 2, [string(&export.name), export.description.into_bytes()].concat()))
        .collect();
    expected.push((3, ACK, Vec::new()));
    assert_eq!(replies(&heard.output), expected);
    let golden =
        hex("0003e889045565a9 00000003 00000002 00000017 00000004 66696e65 7468652066696e65206578706f7274");
    assert_eq!(heard.output[..golden.len()], golden);
    assert_eq!(kinds(&mut session, 3, b"x"), [INVALID]);
}

#[test]
fn abort_is_acknowledged_whatever_its_data() {
    for data in [&b""[..], b"goodbye"] {
        let mut session = greeted(3);
        let heard = feed(&mut session, &option(2, data));
        assert_eq!(heard.output, hex("0003e889045565a9 00000002 00000001 00000000"));
        assert_eq!(heard.steps, [Step::Disconnect]);
        assert_eq!(feed(&mut session, b"more").steps, [Step::Disconnect]);
    }
}

#[test]
fn options_not_known_are_unsupported_and_the_session_goes_on() {
    let mut session = greeted(3);
    for kind in [0, 4, 5, 12, 99, u32::MAX] {
        for length in [0, 1, 15, 16, 17, 4096, 70_000] {
            assert_eq!(kinds(&mut session, kind, &vec![0x49; length]), [UNSUP], "option {kind}");
        }
    }
    assert_eq!(kinds(&mut session, 7, &info("fine", &[])), [3, 3, ACK]);
}

#[test]
fn large_options_are_drained_and_too_big() {
    let mut session = greeted(3);
    for kind in [3, 6, 7, 8, 9, 10, 11] {
        assert_eq!(kinds(&mut session, kind, &vec![0xff; 64 << 10]), [INVALID], "option {kind}");
        assert_eq!(kinds(&mut session, kind, &vec![0xff; (64 << 10) + 1]), [TOO_BIG], "option {kind}");
    }
    assert_eq!(kinds(&mut session, 7, &info("fine", &[])), [3, 3, ACK]);
}

#[test]
fn absurd_options_end_the_session() {
    let length_bytes = (256u32 << 20) + 1;
    for kind in [2u32, 3, 7, 77] {
        let header = |length: u32| [&b"IHAVEOPT"[..], &kind.to_be_bytes(), &length.to_be_bytes()].concat();
        let mut session = greeted(3);
        assert_eq!(feed(&mut session, &header(length_bytes - 1)).error, None);
        let mut session = greeted(3);
        let error = feed(&mut session, &header(length_bytes)).error;
        assert_eq!(error, Some(SessionError::OptionTooLarge { length_bytes }));
    }
}

#[test]
fn bad_option_magic_ends_the_session() {
    let mut session = greeted(3);
    let mut bytes = option(3, b"");
    bytes[7] ^= 1;
    assert_eq!(feed(&mut session, &bytes).error, Some(SessionError::OptionMagic(0x4948_4156_454f_5055)));
    assert!(feed(&mut session, &option(3, b"")).error.is_some(), "an end is final");
}

#[test]
fn answers_come_one_at_a_time() {
    let exports = fuzz::exports();
    let mut session = greeted(3);
    let bytes = [option(3, b""), option(3, b""), option(2, b"")].concat();
    let first = session.advance(&bytes, &exports).unwrap();
    assert_eq!((first.consumed, first.step), (16, Step::SendOutput));
    let length = session.output().len();
    let still = session.advance(&bytes[16..], &exports).unwrap();
    assert_eq!((still.consumed, still.step, session.output().len()), (0, Step::SendOutput, length));
    session.output().clear();
    assert_eq!(session.advance(&bytes[16..], &exports).unwrap().consumed, 16);
}

#[test]
fn reply_formats_are_chosen_by_options_without_data() {
    let mut session = greeted(3);
    assert_eq!(kinds(&mut session, 8, b"x"), [INVALID]);
    assert_eq!(kinds(&mut session, 11, b"x"), [INVALID]);
    assert_eq!(kinds(&mut session, 8, b""), [ACK]);
    assert_eq!(kinds(&mut session, 11, b""), [ACK]);
    assert_eq!(kinds(&mut session, 8, b""), [EXT_HEADER_REQD]);
    assert_eq!(kinds(&mut session, 7, &info("fine", &[])), [3, 3, ACK]);
    assert_eq!(session.negotiated().unwrap().format, ReplyFormat::Extended);
}

/// The answer to a meta context option: ids and names, then the kind of the last reply.
fn contexts(session: &mut Session, kind: u32, data: &[u8]) -> (Vec<(u32, String)>, u32) {
    let mut all = replies(&feed(session, &option(kind, data)).output);
    let last = all.pop().unwrap().1;
    let parse = |(_, kind, data): (u32, u32, Vec<u8>)| {
        assert_eq!(kind, 4);
        (u32::from_be_bytes(data[..4].try_into().unwrap()), String::from_utf8(data[4..].to_vec()).unwrap())
    };
    (all.into_iter().map(parse).collect(), last)
}

#[test]
fn contexts_are_found_by_the_rules_of_their_namespace() {
    let mut session = greeted(3);
    assert_eq!(kinds(&mut session, 8, b""), [ACK]);
    // Queries, whether a listing shows base:allocation, whether a setting selects it.
    let long = "base:allocation".repeat(400);
    let cases: [(&[&str], bool, bool); 13] = [
        (&[], true, false),
        (&["base:"], true, false),
        (&["base:allocation"], true, true),
        (&["base:allocation", "base:allocation"], true, true),
        (&["qemu:dirty-bitmap:x", "base:allocation"], true, true),
        (&["base:allocation:"], false, false),
        (&["base:other"], false, false),
        (&["BASE:allocation"], false, false),
        (&["base"], false, false),
        (&[""], false, false),
        (&["qemu:"], false, false),
        (&["x-ours:what"], false, false),
        (&[&long], false, false),
    ];
    for (queries, lists, sets) in cases {
        let data = meta("fine", queries);
        let listed = if lists { vec![(0, "base:allocation".to_owned())] } else { vec![] };
        assert_eq!(contexts(&mut session, 9, &data), (listed, ACK), "{queries:?}");
        let selected = if sets { vec![(1, "base:allocation".to_owned())] } else { vec![] };
        assert_eq!(contexts(&mut session, 10, &data), (selected, ACK), "{queries:?}");
    }
}

#[test]
fn bookmarks_have_contexts_of_their_own() {
    // Queries, what a listing shows, what a setting selects.
    type Case<'a> = (&'a [&'a str], &'a [&'a str], &'a [(u32, &'a str)]);
    let mut session = greeted(3);
    assert_eq!(kinds(&mut session, 8, b""), [ACK]);
    let (allocation, monday, tuesday) =
        ("base:allocation", "holdfast:dirty:monday", "holdfast:dirty:tuesday");
    let cases: [Case<'_>; 7] = [
        (&[], &[allocation, monday, tuesday], &[]),
        (&["holdfast:"], &[monday, tuesday], &[]),
        (&["holdfast:dirty:"], &[monday, tuesday], &[]),
        (&[tuesday], &[tuesday], &[(3, tuesday)]),
        (&[monday, allocation, monday], &[allocation, monday], &[(1, allocation), (2, monday)]),
        (&["holdfast:dirty:wednesday"], &[], &[]),
        (&["base:"], &[allocation], &[]),
    ];
    let named =
        |names: &[(u32, &str)]| names.iter().map(|(id, name)| (*id, (*name).to_owned())).collect::<Vec<_>>();
    for (queries, lists, sets) in cases {
        let data = meta("frozen", queries);
        let listed: Vec<_> = lists.iter().map(|name| (0, *name)).collect();
        assert_eq!(contexts(&mut session, 9, &data), (named(&listed), ACK), "{queries:?}");
        assert_eq!(contexts(&mut session, 10, &data), (named(sets), ACK), "{queries:?}");
    }
    // The export beside it has none of them.
    assert_eq!(contexts(&mut session, 10, &meta("fine", &[monday])), (vec![], ACK));
}

#[test]
fn context_options_are_refused_when_they_should_be() {
    let mut session = greeted(3);
    let good = meta("fine", &["base:allocation", "base:"]);
    for kind in [9, 10] {
        assert_eq!(kinds(&mut session, kind, &good), [INVALID], "structured replies come first");
    }
    assert_eq!(kinds(&mut session, 8, b""), [ACK]);
    for kind in [9, 10] {
        for length in 0..good.len() {
            assert_eq!(kinds(&mut session, kind, &good[..length]), [INVALID], "{length} bytes");
        }
        assert_eq!(kinds(&mut session, kind, &[&good[..], &[0]].concat()), [INVALID]);
        assert_eq!(kinds(&mut session, kind, &[string("fine"), hex("ffffffff")].concat()), [INVALID]);
        assert_eq!(kinds(&mut session, kind, &meta("missing", &[])), [UNKNOWN]);
        assert_eq!(kinds(&mut session, kind, &meta("away", &[])), [POLICY]);
        assert_eq!(kinds(&mut session, kind, &meta(&"x".repeat(4097), &[])), [INVALID]);
    }
}

#[test]
fn a_context_lasts_until_the_next_setting_and_for_its_export_only() {
    let selection = meta("fine", &["base:allocation"]);
    let undoings: [(u32, Vec<u8>, bool); 6] = [
        (9, meta("fine", &[]), true),
        (10, meta("fine", &[]), false),
        (10, meta("missing", &["base:allocation"]), false),
        (10, meta("coarse", &["base:allocation"]), false),
        (10, b"malformed".to_vec(), false),
        (10, vec![0; 70_000], false),
    ];
    for (kind, data, remains) in undoings {
        let mut session = greeted(3);
        assert_eq!(kinds(&mut session, 8, b""), [ACK]);
        assert_eq!(kinds(&mut session, 10, &selection), [4, ACK]);
        kinds(&mut session, kind, &data);
        assert_eq!(kinds(&mut session, 7, &info("fine", &[])), [3, 3, ACK]);
        assert_eq!(!session.negotiated().unwrap().contexts.is_empty(), remains, "after option {kind}");
    }
}

#[test]
fn transmission_flags_are_those_of_the_export_and_the_format() {
    // has, read-only, flush, fua, rotational, trim, zeroes, df, multi, -, cache, fast zero, status payload
    let cases: [(&str, &[u32], u16); 9] = [
        ("fine", &[], 0b0_1101_0111_1101),
        ("fine", &[8], 0b0_1101_1111_1101),
        ("fine", &[8, 10], 0b0_1101_1111_1101),
        ("fine", &[11], 0b0_1101_1111_1101),
        ("fine", &[11, 10], 0b1_1101_1111_1101),
        ("frozen", &[], 0b0_0101_0001_1111),
        ("frozen", &[8, 10], 0b0_0101_1001_1111),
        ("", &[], 0b0_0000_0000_0001),
        ("", &[11], 0b0_0000_1000_0001),
    ];
    for (name, options, flags) in cases {
        let mut session = greeted(3);
        for kind in options {
            let data = if *kind == 10 { meta(name, &["base:allocation"]) } else { Vec::new() };
            kinds(&mut session, *kind, &data);
        }
        let heard = feed(&mut session, &option(7, &info(name, &[])));
        let (_, _, data) = &replies(&heard.output)[0];
        assert_eq!(data[10..12], flags.to_be_bytes(), "{name} {options:?}");
    }
}

#[test]
fn exports_are_checked() {
    type Change = fn(&mut nbd_frontend::Export);
    let changes: [(Change, Result<(), ExportError>); 14] = [
        (|_| {}, Ok(())),
        (|export| export.name = "x".repeat(4096), Ok(())),
        (|export| export.name = "x".repeat(4097), Err(ExportError::String)),
        (|export| export.description = "a\0b".to_owned(), Err(ExportError::String)),
        (|export| export.size_bytes += 512, Err(ExportError::Size)),
        (|export| export.size_bytes = 1 << 63, Err(ExportError::Size)),
        (|export| export.block.min_bytes = 0, Err(ExportError::BlockSizes)),
        (|export| export.block.min_bytes = 3000, Err(ExportError::BlockSizes)),
        (|export| export.block.min_bytes = 1 << 17, Err(ExportError::BlockSizes)),
        (|export| export.block.preferred_bytes = 512, Err(ExportError::BlockSizes)),
        (|export| export.block.max_bytes = (64 << 10) - 1, Err(ExportError::BlockSizes)),
        (|export| export.block.max_bytes = 256 << 20, Ok(())),
        (|export| export.block.max_bytes = (256 << 20) + 1, Err(ExportError::BlockSizes)),
        (|export| export.block.preferred_bytes = 1 << 17, Err(ExportError::BlockSizes)),
    ];
    for (index, (change, expected)) in changes.into_iter().enumerate() {
        let mut export = export("coarse");
        change(&mut export);
        assert_eq!(export.check(), expected, "change {index}");
    }
    fuzz::exports().iter().for_each(|export| export.check().unwrap());
}

#[test]
fn unchecked_exports_are_clipped_and_never_panic() {
    let mut broken = export("fine");
    broken.name = "ü".repeat(5000);
    broken.description = "€".repeat(5000);
    broken.block = BlockSizes { min_bytes: 0, preferred_bytes: 0, max_bytes: u32::MAX };
    let exports = [broken];
    let mut session = greeted(3);
    let advance = session.advance(&option(spec::NBD_OPT_LIST, b""), &exports).unwrap();
    assert_eq!(advance.step, Step::SendOutput);
    let (_, _, data) = replies(session.output()).remove(0);
    assert_eq!(data.len(), 4 + 4096 + 4095);
}
