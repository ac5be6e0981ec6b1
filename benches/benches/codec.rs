//! Encoding and decoding without the rest: frames, envelopes, checksums, NBD requests and replies.

use std::hint::black_box;
use std::time::{Duration, Instant};

use holdfast_benches::measure::{Table, median, option, thousands};
use nbd_frontend::{
    Availability, BlockSizes, Command, Export, ExportFlags, OK_BYTES_MAX, READ_HEADER_BYTES_MAX, ReplyFormat,
    Session, Step, spec,
};
use replicator_core::chain;
use replicator_core::frame::{self, Entry, EntryKind, FrameHeader, LocalPart};
use replicator_core::limits::FRAME_ENTRIES_MAX;
use replicator_core::units::{Chain, Epoch, Incarnation, Position, ReignId, RingOffset, Sequence, VolumeId};
use replicator_core::wire::envelope::{ENVELOPE_BYTES, Envelope, MessageKind};

const PAGE: usize = 4096;
/// Requests that a client has sent before the server looks.
const PIPELINED: usize = 64;
const VOLUME: VolumeId = VolumeId(1);

/// Measures one thing after the other, a row each.
struct Bench {
    table: Table,
    round: Duration,
    rounds: u32,
}

impl Bench {
    /// Times `body`, which handles `bytes` in `items` parts a call.
    fn run(&mut self, name: &str, bytes: usize, items: usize, mut body: impl FnMut()) {
        // How many calls fill a round.
        let mut calls = 1u32;
        loop {
            let began = Instant::now();
            (0..calls).for_each(|_| body());
            if began.elapsed() * 8 > self.round {
                break;
            }
            calls *= 2;
        }
        let mut times = Vec::new();
        for _ in 0..self.rounds {
            let began = Instant::now();
            (0..calls * 8).for_each(|_| body());
            times.push(began.elapsed().as_secs_f64() / f64::from(calls * 8));
        }
        let seconds = median(times);
        self.table.row(vec![
            name.to_owned(),
            format!("{:.1}", seconds * 1e9),
            format!("{:.1}", seconds * 1e9 / items as f64),
            thousands(items as f64 / seconds),
            format!("{:.2}", bytes as f64 / seconds / f64::from(1 << 30)),
        ]);
    }
}

fn main() {
    let table = Table::new(&["what", "ns", "ns an item", "items/s", "GiB/s"]);
    let (round_ms, rounds): (u64, u32) = (option("ms", 20), option("rounds", 7));
    let mut bench = Bench { table, round: Duration::from_millis(round_ms), rounds };
    checksums(&mut bench);
    for entries in [1, 16, FRAME_ENTRIES_MAX] {
        frames(&mut bench, entries);
    }
    envelopes(&mut bench);
    for format in [ReplyFormat::Simple, ReplyFormat::Extended] {
        requests(&mut bench, format);
    }
    replies(&mut bench);
    bench.table.print("Codec, one thread, data in the cache (medians)");
}

fn checksums(bench: &mut Bench) {
    let page = vec![0x5a; PAGE];
    let large = vec![0x5a; 1 << 20];
    bench.run("CRC-32 of 4 KiB", PAGE, 1, || {
        black_box(crc32fast::hash(black_box(&page)));
    });
    bench.run("CRC-32 of 1 MiB", large.len(), 1, || {
        black_box(crc32fast::hash(black_box(&large)));
    });
    let position = Position { epoch: Epoch(1), sequence: Sequence(1) };
    let entry = [7; chain::ENTRY_BYTES];
    let mut value = chain::genesis(VOLUME);
    bench.run("chain over an entry", chain::ENTRY_BYTES, 1, || {
        value = chain::extend(value, position, ReignId(3), black_box(&entry));
    });
    black_box(value);
}

/// Entries of 4 KiB writes that lie one behind the other, and how long their frame is.
fn make_entries(count: usize, payload: &[u8]) -> (Vec<Entry>, usize) {
    let make = |index: usize| Entry {
        kind: EntryKind::Write,
        fua: false,
        payload_crc: crc32fast::hash(payload),
        offset: (index * 7 * PAGE) as u64,
        length: PAGE as u64,
        payload_at: u32::try_from(PAGE * (1 + index)).expect("a frame is small"),
    };
    ((0..count).map(make).collect(), PAGE * (1 + count))
}

fn frames(bench: &mut Bench, count: usize) {
    let payload: Vec<u8> = (0..PAGE).map(|at| (at % 251) as u8).collect();
    let (entries, bytes) = make_entries(count, &payload);
    let mut block = vec![0; bytes];
    block[PAGE..].chunks_exact_mut(PAGE).for_each(|place| place.copy_from_slice(&payload));
    let header = FrameHeader {
        volume: VOLUME,
        epoch: Epoch(1),
        reign: ReignId(2),
        first: Sequence(1),
        entries: 0,
        total_bytes: u32::try_from(bytes).expect("a frame is small"),
        chain_before: Chain(5),
        chain_after: Chain(5),
        committed: Sequence(0),
        stable: Sequence(0),
        closed_ms: 0,
    };
    let plural = if count == 1 { "entry" } else { "entries" };
    bench.run(&format!("frame: encode header, {count} {plural}"), PAGE, count, || {
        black_box(frame::encode(black_box(&mut block), header, black_box(&entries).iter()));
    });
    bench.run(&format!("frame: decode header, {count} {plural}"), PAGE, count, || {
        black_box(frame::decode(black_box(&block)).expect("it was encoded above"));
    });
    let header = frame::decode(&block).expect("it was encoded above");
    bench.run(&format!("frame: payload CRCs, {count} {plural}"), count * PAGE, count, || {
        frame::check_payloads(black_box(&block), &header).expect("it was encoded above");
    });
    if count == 1 {
        let local = LocalPart { ring_offset: RingOffset(4096), ..LocalPart::default() };
        bench.run("frame: local part, encode", 64, 1, || frame::encode_local(black_box(&mut block), &local));
        bench.run("frame: local part, decode", 64, 1, || {
            black_box(frame::decode_local(black_box(&block)).expect("it was encoded above"));
        });
    }
}

fn envelopes(bench: &mut Bench) {
    let envelope = Envelope {
        kind: MessageKind::Ack,
        sync: false,
        body_bytes: 32,
        body_crc: 1,
        incarnation: Incarnation(1),
        volume: VOLUME,
        session: 1,
        epoch: Epoch(1),
        reign: ReignId(2),
        committed: Sequence(10),
        stable: Sequence(5),
    };
    bench.run("envelope: encode", ENVELOPE_BYTES, 1, || {
        black_box(black_box(&envelope).encode());
    });
    let bytes = envelope.encode();
    bench.run("envelope: decode", ENVELOPE_BYTES, 1, || {
        black_box(Envelope::decode(black_box(&bytes)).expect("it was encoded above"));
    });
}

fn exports() -> [Export; 1] {
    [Export {
        name: "bench".into(),
        description: String::new(),
        size_bytes: 1 << 30,
        flags: ExportFlags { flush: true, fua: true, trim: true, ..ExportFlags::default() },
        block: BlockSizes { min_bytes: 512, preferred_bytes: 4096, max_bytes: 32 << 20 },
        availability: Availability::Ready,
        bookmarks: Vec::new(),
    }]
}

/// A session that has agreed on `format`, through the bytes a client sends.
fn negotiate(format: ReplyFormat, exports: &[Export]) -> Session {
    let mut bytes = (spec::NBD_FLAG_C_FIXED_NEWSTYLE | spec::NBD_FLAG_C_NO_ZEROES).to_be_bytes().to_vec();
    let mut option = |kind: u32, data: &[u8]| {
        bytes.extend_from_slice(&spec::IHAVEOPT.to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&u32::try_from(data.len()).expect("short").to_be_bytes());
        bytes.extend_from_slice(data);
    };
    if format == ReplyFormat::Extended {
        option(spec::NBD_OPT_EXTENDED_HEADERS, &[]);
    }
    option(spec::NBD_OPT_GO, b"\0\0\0\x05bench\0\x01\0\x03");
    let mut session = Session::new();
    let mut rest = &bytes[..];
    loop {
        session.output().clear();
        let advance = session.advance(rest, exports).expect("a sound handshake");
        rest = &rest[advance.consumed..];
        match advance.step {
            Step::SendOutput => {}
            Step::Negotiated => return session,
            step => unreachable!("not in this handshake: {step:?}"),
        }
    }
}

/// Requests as they come in one receive: headers, and payloads behind those of writes.
fn stream(format: ReplyFormat, kind: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    for index in 0..PIPELINED as u64 {
        let is_write = kind == spec::NBD_CMD_WRITE;
        let is_extended = format == ReplyFormat::Extended;
        let magic = if is_extended { spec::NBD_EXTENDED_REQUEST_MAGIC } else { spec::NBD_REQUEST_MAGIC };
        let flags = if is_extended && is_write { spec::NBD_CMD_FLAG_PAYLOAD_LEN } else { 0 };
        bytes.extend_from_slice(&magic.to_be_bytes());
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&index.to_be_bytes());
        bytes.extend_from_slice(&(index * 8192).to_be_bytes());
        if is_extended {
            bytes.extend_from_slice(&(PAGE as u64).to_be_bytes());
        } else {
            bytes.extend_from_slice(&(PAGE as u32).to_be_bytes());
        }
        if is_write {
            bytes.resize(bytes.len() + PAGE, 0xa5);
        }
    }
    bytes
}

fn requests(bench: &mut Bench, format: ReplyFormat) {
    let exports = exports();
    for (name, kind) in [("reads", spec::NBD_CMD_READ), ("writes of 4 KiB", spec::NBD_CMD_WRITE)] {
        let mut session = negotiate(format, &exports);
        let bytes = stream(format, kind);
        bench.run(&format!("NBD: parse {PIPELINED} {name}, {format:?}"), bytes.len(), PIPELINED, || {
            let mut rest = black_box(&bytes[..]);
            let mut count = 0;
            while !rest.is_empty() {
                let advance = session.advance(rest, &exports).expect("sound requests");
                let Step::Request(request) = black_box(advance.step) else { unreachable!("whole requests") };
                let is_write = matches!(request.command, Command::Write { .. });
                let payload = if is_write { PAGE } else { 0 };
                rest = &rest[advance.consumed + payload..];
                count += 1;
            }
            assert!(count == PIPELINED);
        });
    }
}

fn replies(bench: &mut Bench) {
    let tag = nbd_frontend::ReplyTag { cookie: 7, offset: 4096 };
    for format in [ReplyFormat::Simple, ReplyFormat::Structured, ReplyFormat::Extended] {
        let mut ok = [0; OK_BYTES_MAX];
        bench.run(&format!("NBD: reply header, ok, {format:?}"), OK_BYTES_MAX, 1, || {
            black_box(format.encode_ok(black_box(tag), black_box(&mut ok)));
        });
        let mut read = [0; READ_HEADER_BYTES_MAX];
        bench.run(&format!("NBD: reply header, read, {format:?}"), READ_HEADER_BYTES_MAX, 1, || {
            black_box(format.encode_read_header(black_box(tag), PAGE as u64, black_box(&mut read)));
        });
    }
}
