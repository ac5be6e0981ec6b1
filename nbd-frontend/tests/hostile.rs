//! Hostile bytes: whatever arrives and however it is cut, nothing panics and the result is the same.

mod support;

use std::panic::catch_unwind;

use nbd_frontend::fuzz::fuzz_session;
use nbd_frontend::{Session, Step, spec};
use proptest::collection::vec;
use proptest::prelude::*;
use support::{Heard, STYLES, Style, feed, hex, info, meta, option, request};

/// A conversation that uses all there is, from the client flags to the end.
fn conversation(style: Style) -> Vec<u8> {
    let mut bytes = hex("00000003");
    bytes.extend(option(99, b"what"));
    bytes.extend(option(spec::NBD_OPT_LIST, b""));
    bytes.extend(option(spec::NBD_OPT_INFO, &info("coarse", &[1, 2, 3])));
    match style {
        Style::Simple => {}
        Style::Structured => bytes.extend(option(spec::NBD_OPT_STRUCTURED_REPLY, b"")),
        Style::Extended => bytes.extend(option(spec::NBD_OPT_EXTENDED_HEADERS, b"")),
    }
    bytes.extend(option(spec::NBD_OPT_LIST_META_CONTEXT, &meta("fine", &[])));
    bytes.extend(option(spec::NBD_OPT_SET_META_CONTEXT, &meta("fine", &["base:allocation"])));
    bytes.extend(option(spec::NBD_OPT_GO, &info("fine", &[3])));
    let payload = if style == Style::Extended { 32 } else { 0 };
    bytes.extend(request(style, 0, 0, 0, 4096));
    bytes.extend(request(style, payload, 1, 4096, 64));
    bytes.extend([0x25; 64]);
    bytes.extend(request(style, payload, 1, 1 << 20, 32));
    bytes.extend([0x21; 32]);
    bytes.extend(request(style, 0, 3, 0, 0));
    bytes.extend(request(style, 8, 7, 0, 8192));
    if style == Style::Extended {
        bytes.extend(request(style, 32, 7, 0, 12));
        bytes.extend(hex("0000000000001000 00000001"));
    }
    bytes.extend(request(style, 1, 6, 0, 1 << 20));
    bytes.extend(request(style, 0, 2, 0, 0));
    bytes
}

/// Feeds the stream in slices whose lengths repeat; the driver takes payloads across slices.
fn feed_sliced(bytes: &[u8], lengths: &[usize]) -> Heard {
    let exports = nbd_frontend::fuzz::exports();
    let mut session = Session::new();
    let mut heard = Heard::default();
    let mut skip_bytes = 0;
    let mut rest = bytes;
    for length in lengths.iter().cycle() {
        let (mut slice, after) = rest.split_at(rest.len().min(*length));
        rest = after;
        loop {
            let skipped = slice.len().min(skip_bytes);
            slice = &slice[skipped..];
            skip_bytes -= skipped;
            if skip_bytes > 0 {
                break;
            }
            let advance = match session.advance(slice, &exports) {
                Ok(advance) => advance,
                Err(error) => {
                    heard.error = Some(error);
                    return heard;
                }
            };
            slice = &slice[advance.consumed..];
            heard.output.append(session.output());
            match advance.step {
                Step::NeedInput => break,
                Step::SendOutput => continue,
                Step::Request(request) if support::is_write(&request) => {
                    skip_bytes = request.length_bytes as usize;
                }
                Step::Reject(reject) => skip_bytes = reject.drain_bytes as usize,
                _ => {}
            }
            heard.steps.push(advance.step);
            if advance.step == Step::Disconnect {
                return heard;
            }
        }
        if rest.is_empty() {
            return heard;
        }
    }
    heard
}

#[test]
fn the_conversation_goes_as_meant() {
    for (style, steps) in [(Style::Simple, 8), (Style::Structured, 8), (Style::Extended, 9)] {
        let heard = feed(&mut Session::new(), &conversation(style));
        assert_eq!((heard.error, heard.steps.len()), (None, steps), "{style:?}");
        assert_eq!(heard.steps.last(), Some(&Step::Disconnect));
        let rejected = heard.steps.iter().filter(|step| matches!(step, Step::Reject(_))).count();
        assert_eq!(rejected, if style == Style::Simple { 2 } else { 1 });
    }
}

#[test]
fn byte_by_byte_is_the_same_as_all_at_once() {
    for style in STYLES {
        let bytes = conversation(style);
        let whole = feed(&mut Session::new(), &bytes);
        assert_eq!(feed_sliced(&bytes, &[1]), whole);
        for length in 2..50 {
            assert_eq!(feed_sliced(&bytes, &[length]), whole, "slices of {length}");
        }
    }
}

#[test]
fn a_stream_may_end_anywhere() {
    for style in STYLES {
        let bytes = conversation(style);
        let whole = feed(&mut Session::new(), &bytes);
        for length in 0..bytes.len() {
            let part = feed(&mut Session::new(), &bytes[..length]);
            assert_eq!(part.error, None);
            assert!(whole.output.starts_with(&part.output) && whole.steps.starts_with(&part.steps));
            assert!(!part.steps.contains(&Step::Disconnect));
        }
    }
}

#[test]
fn any_one_bit_may_be_wrong() {
    for style in STYLES {
        let mut bytes = conversation(style);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let whole = feed(&mut Session::new(), &bytes);
            assert_eq!(feed_sliced(&bytes, &[7, 1, 30]), whole, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn the_fuzz_body_runs_every_style_and_can_fail() {
    for style in 0..8u8 {
        for seed in 0..64u8 {
            let mut data = vec![style, 0, 0, 0, 0, 0, 0, seed];
            let mut state = u32::from(seed) * 8 + u32::from(style) + 1;
            data.extend((0..2000).map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            }));
            fuzz_session(&data);
        }
    }
    for length in 0..10 {
        fuzz_session(&vec![0; length]);
    }
    // The asserting half of it is alive: an encoder called against its contract panics.
    let misuse = || {
        let tag = nbd_frontend::ReplyTag { cookie: 0, offset: 0 };
        nbd_frontend::ReplyFormat::Simple.encode_read_header(tag, u64::MAX, &mut [0; 40])
    };
    assert!(catch_unwind(misuse).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn raw_bytes_do_no_harm(style in 0..8u8, seed: [u8; 7], body in vec(any::<u8>(), 0..3000)) {
        fuzz_session(&[&[style][..], &seed, &body].concat());
    }

    #[test]
    fn any_slicing_of_a_conversation_is_the_same(
        which in 0..3usize,
        lengths in vec(1..200usize, 1..20),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = conversation(STYLES[which]);
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        prop_assert_eq!(feed_sliced(&bytes, &lengths), feed(&mut Session::new(), &bytes));
    }
}
