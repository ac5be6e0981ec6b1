//! Before TLS nothing is told where TLS is required; after it, all is as without.

mod support;

use nbd_frontend::{Session, SessionError, Step, spec};
use support::{feed, info, kinds, meta, option, replies};

const ACK: u32 = 1;
const UNSUP: u32 = 0x8000_0001;
const INVALID: u32 = 0x8000_0003;
const TLS_REQD: u32 = 0x8000_0005;

/// All options that would tell or change something, and one that nobody knows.
fn options() -> Vec<(u32, Vec<u8>)> {
    vec![
        (spec::NBD_OPT_LIST, Vec::new()),
        (spec::NBD_OPT_INFO, info("fine", &[1, 2])),
        (spec::NBD_OPT_GO, info("fine", &[])),
        (spec::NBD_OPT_STRUCTURED_REPLY, Vec::new()),
        (spec::NBD_OPT_LIST_META_CONTEXT, meta("fine", &[])),
        (spec::NBD_OPT_SET_META_CONTEXT, meta("fine", &["base:allocation"])),
        (spec::NBD_OPT_EXTENDED_HEADERS, Vec::new()),
        (99, b"what".to_vec()),
        (spec::NBD_OPT_LIST, vec![0; 100_000]),
    ]
}

fn greeted_and_required() -> Session {
    let mut session = Session::requiring_tls();
    let heard = feed(&mut session, &3u32.to_be_bytes());
    assert_eq!((heard.output.len(), heard.error), (18, None));
    session
}

fn secured() -> Session {
    let mut session = greeted_and_required();
    let heard = feed(&mut session, &option(spec::NBD_OPT_STARTTLS, b""));
    assert_eq!((heard.steps, heard.error), (vec![Step::StartTls], None));
    assert_eq!(replies(&heard.output), [(spec::NBD_OPT_STARTTLS, ACK, Vec::new())]);
    session
}

#[test]
fn nothing_is_told_in_the_clear() {
    let mut session = greeted_and_required();
    for (number, data) in options() {
        let heard = feed(&mut session, &option(number, &data));
        assert_eq!((heard.steps, heard.error), (vec![], None), "option {number}");
        let told = replies(&heard.output);
        assert_eq!(told.len(), 1, "option {number}");
        assert_eq!((told[0].0, told[0].1), (number, TLS_REQD), "option {number}");
        assert!(session.negotiated().is_none());
    }
}

#[test]
fn an_option_that_cannot_be_refused_ends_the_session() {
    for name in ["fine", "", "nobody"] {
        let heard = feed(&mut greeted_and_required(), &option(spec::NBD_OPT_EXPORT_NAME, name.as_bytes()));
        assert_eq!((heard.output, heard.error), (vec![], Some(SessionError::TlsRequired)), "{name}");
    }
}

#[test]
fn a_client_may_go_without_tls() {
    let heard = feed(&mut greeted_and_required(), &option(spec::NBD_OPT_ABORT, b""));
    assert_eq!(heard.steps, [Step::Disconnect]);
}

#[test]
fn within_tls_all_is_as_without() {
    for (number, data) in options() {
        let within = feed(&mut secured(), &option(number, &data));
        let without = feed(&mut support::greeted(3), &option(number, &data));
        assert_eq!(within, without, "option {number}");
    }
}

#[test]
fn what_was_said_in_the_clear_counts_for_nothing() {
    let mut session = greeted_and_required();
    assert_eq!(kinds(&mut session, spec::NBD_OPT_STRUCTURED_REPLY, b""), [TLS_REQD]);
    feed(&mut session, &option(spec::NBD_OPT_STARTTLS, b""));
    feed(&mut session, &option(spec::NBD_OPT_GO, &info("fine", &[])));
    assert_eq!(session.negotiated().unwrap().format, nbd_frontend::ReplyFormat::Simple);
}

#[test]
fn tls_begins_once_and_takes_no_data() {
    assert_eq!(kinds(&mut greeted_and_required(), spec::NBD_OPT_STARTTLS, b"x"), [INVALID]);
    assert_eq!(kinds(&mut secured(), spec::NBD_OPT_STARTTLS, b""), [INVALID]);
}

#[test]
fn a_server_without_tls_says_that_it_knows_none() {
    assert_eq!(kinds(&mut support::greeted(3), spec::NBD_OPT_STARTTLS, b""), [UNSUP]);
}
