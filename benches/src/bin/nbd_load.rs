//! A small load generator for NBD exports on unix sockets, on tokio-uring: a second opinion beside fio, and cheaper.
//!
//! ```text
//! nbd_load --socket /run/x.sock --export v0 --mode randwrite --depth 32 --seconds 5
//! {"mode":"randwrite",...,"iops":48210,"latency_us":{"p50":640.1,"p99":1104.9,"p99_9":1720.3,"max":2960.2}}
//! ```

use std::cell::RefCell;
use std::error::Error;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use holdfast_benches::histogram::Histogram;
use holdfast_benches::random::Random;
use nbd_frontend::spec;
use tokio::sync::Notify;
use tokio_uring::net::UnixStream;

/// Loads an NBD export and prints requests a second and latencies as one line of JSON. Writes destroy its contents.
#[derive(Parser)]
struct Options {
    /// The export's unix socket.
    #[arg(long)]
    socket: PathBuf,
    /// The export's name.
    #[arg(long, default_value = "")]
    export: String,
    /// What to do.
    #[arg(long, value_enum, default_value = "randwrite")]
    mode: Mode,
    /// Requests in flight.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    depth: u32,
    /// Bytes of a request, a multiple of 512.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(512..=32 << 20))]
    block_size: u32,
    /// How long to measure.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How long to run before that.
    #[arg(long, default_value_t = 0.5)]
    ramp: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Randwrite,
    Randread,
    Write,
    Read,
}

impl Mode {
    fn is_write(self) -> bool {
        matches!(self, Self::Randwrite | Self::Write)
    }

    fn is_random(self) -> bool {
        matches!(self, Self::Randwrite | Self::Randread)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Randwrite => "randwrite",
            Self::Randread => "randread",
            Self::Write => "write",
            Self::Read => "read",
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let bad_times =
        !(0.0..=86_400.0).contains(&options.ramp) || !(0.01..=86_400.0).contains(&options.seconds);
    if !options.block_size.is_multiple_of(512) || bad_times {
        return Err("the block size is a multiple of 512, and times are between a moment and a day".into());
    }
    let (stream, size_bytes) = connect(&options.socket, &options.export)?;
    let blocks = size_bytes / u64::from(options.block_size);
    if blocks == 0 {
        return Err("the export is smaller than one block".into());
    }
    let mut ring = tokio_uring::uring_builder();
    ring.setup_coop_taskrun().setup_single_issuer();
    let run =
        tokio_uring::builder().entries(64).uring_builder(&ring).start(load(stream, &options, blocks))?;
    print(&options, &run);
    Ok(())
}

fn print(options: &Options, run: &Run) {
    let us = |ns: u64| ns as f64 / 1000.0;
    let latencies = &run.latencies;
    let iops = latencies.total() as f64 / options.seconds;
    println!(
        "{{\"mode\":\"{}\",\"block_bytes\":{},\"depth\":{},\"seconds\":{},\"requests\":{},\"iops\":{iops:.0},\
         \"mib_per_s\":{:.1},\"latency_us\":{{\"p50\":{:.1},\"p99\":{:.1},\"p99_9\":{:.1},\"max\":{:.1}}}}}",
        options.mode.name(),
        options.block_size,
        options.depth,
        options.seconds,
        latencies.total(),
        iops * f64::from(options.block_size) / f64::from(1 << 20),
        us(latencies.permille(500)),
        us(latencies.permille(990)),
        us(latencies.permille(999)),
        us(latencies.max()),
    );
}

/// The fixed newstyle handshake with `NBD_OPT_GO` and simple replies; returns the size of the export.
fn connect(socket: &Path, export: &str) -> Result<(StdStream, u64), Box<dyn Error>> {
    let mut stream = StdStream::connect(socket).map_err(|error| format!("{}: {error}", socket.display()))?;
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    let magics = [spec::INIT_PASSWD.to_be_bytes(), spec::IHAVEOPT.to_be_bytes()].concat();
    if greeting[..16] != magics {
        return Err("this is no NBD server that speaks newstyle".into());
    }
    let flags = spec::NBD_FLAG_C_FIXED_NEWSTYLE | spec::NBD_FLAG_C_NO_ZEROES;
    let name_bytes = u32::try_from(export.len())?;
    let mut message = flags.to_be_bytes().to_vec();
    message.extend_from_slice(&spec::IHAVEOPT.to_be_bytes());
    message.extend_from_slice(&spec::NBD_OPT_GO.to_be_bytes());
    message.extend_from_slice(&(4 + name_bytes + 2).to_be_bytes());
    message.extend_from_slice(&name_bytes.to_be_bytes());
    message.extend_from_slice(export.as_bytes());
    message.extend_from_slice(&0u16.to_be_bytes());
    stream.write_all(&message)?;
    let mut size_bytes = None;
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header)?;
        let kind = be32(&header[12..]);
        let mut data = vec![0; (be32(&header[16..]) as usize).min(1 << 16)];
        stream.read_exact(&mut data)?;
        match kind {
            spec::NBD_REP_ACK => return Ok((stream, size_bytes.ok_or("the server named no size")?)),
            spec::NBD_REP_INFO if data.len() >= 10 && data[..2] == spec::NBD_INFO_EXPORT.to_be_bytes() => {
                size_bytes = Some(be64(&data[2..]));
            }
            spec::NBD_REP_INFO => {}
            _ => return Err(format!("the server refused: {}", String::from_utf8_lossy(&data)).into()),
        }
    }
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(*bytes.first_chunk().expect("a field of four bytes"))
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(*bytes.first_chunk().expect("a field of eight bytes"))
}

/// A run under way.
struct Run {
    mode: Mode,
    block_bytes: usize,
    blocks: u64,
    next_block: u64,
    random: Random,
    payload: Vec<u8>,
    /// Requests that wait to be sent.
    output: Vec<u8>,
    /// When each request in flight was put there.
    began: Vec<Instant>,
    in_flight: usize,
    from: Instant,
    until: Instant,
    latencies: Histogram,
}

impl Run {
    fn new(options: &Options, blocks: u64) -> Self {
        let block_bytes = options.block_size as usize;
        let now = Instant::now();
        let from = now + Duration::from_secs_f64(options.ramp);
        let mut random = Random::new(u64::from(std::process::id()));
        Self {
            mode: options.mode,
            block_bytes,
            blocks,
            next_block: 0,
            payload: (0..block_bytes).map(|_| random.below(256) as u8).collect(),
            random,
            output: Vec::with_capacity(options.depth as usize * (spec::REQUEST_BYTES + block_bytes)),
            began: vec![now; options.depth as usize],
            in_flight: 0,
            from,
            until: from + Duration::from_secs_f64(options.seconds),
            latencies: Histogram::new(),
        }
    }

    /// Queues a request in `slot`.
    fn issue(&mut self, slot: usize, now: Instant) {
        let block = if self.mode.is_random() { self.random.below(self.blocks) } else { self.next_block };
        self.next_block = (block + 1) % self.blocks;
        let command = if self.mode.is_write() { spec::NBD_CMD_WRITE } else { spec::NBD_CMD_READ };
        self.put_header(command, slot as u64, block * self.block_bytes as u64, self.block_bytes as u32);
        if self.mode.is_write() {
            self.output.extend_from_slice(&self.payload);
        }
        self.began[slot] = now;
        self.in_flight += 1;
    }

    fn put_header(&mut self, command: u16, cookie: u64, offset: u64, length: u32) {
        let output = &mut self.output;
        output.extend_from_slice(&spec::NBD_REQUEST_MAGIC.to_be_bytes());
        output.extend_from_slice(&0u16.to_be_bytes());
        output.extend_from_slice(&command.to_be_bytes());
        output.extend_from_slice(&cookie.to_be_bytes());
        output.extend_from_slice(&offset.to_be_bytes());
        output.extend_from_slice(&length.to_be_bytes());
    }

    /// Takes a reply; its slot gets the next request, while there is time.
    fn on_reply(&mut self, slot: usize, now: Instant) {
        self.in_flight -= 1;
        if (self.from..self.until).contains(&now) {
            let elapsed = now.duration_since(self.began[slot]);
            self.latencies.add(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX));
        }
        if now < self.until {
            self.issue(slot, now);
        } else if self.in_flight == 0 {
            self.put_header(spec::NBD_CMD_DISC, 0, 0, 0);
        }
    }
}

/// Cuts what is received into replies.
struct Replies {
    header: [u8; spec::SIMPLE_REPLY_BYTES],
    header_filled: usize,
    /// Payload of a read that is still to come.
    payload_missing: usize,
    slot: usize,
}

impl Replies {
    fn take(&mut self, mut bytes: &[u8], run: &mut Run) -> io::Result<()> {
        let now = Instant::now();
        while !bytes.is_empty() {
            if self.payload_missing == 0 {
                let count = bytes.len().min(self.header.len() - self.header_filled);
                self.header[self.header_filled..self.header_filled + count].copy_from_slice(&bytes[..count]);
                self.header_filled += count;
                bytes = &bytes[count..];
                if self.header_filled < self.header.len() {
                    break;
                }
                self.header_filled = 0;
                self.on_header(run)?;
            }
            let count = bytes.len().min(self.payload_missing);
            self.payload_missing -= count;
            bytes = &bytes[count..];
            if self.payload_missing == 0 {
                run.on_reply(self.slot, now);
            }
        }
        Ok(())
    }

    fn on_header(&mut self, run: &Run) -> io::Result<()> {
        let (magic, error, cookie) = (be32(&self.header), be32(&self.header[4..]), be64(&self.header[8..]));
        let slot = usize::try_from(cookie).unwrap_or(usize::MAX);
        if magic != spec::NBD_SIMPLE_REPLY_MAGIC || slot >= run.began.len() {
            return Err(io::Error::other("the server sent something that is no reply to a request"));
        }
        if error != 0 {
            return Err(io::Error::other(format!("the server answered with error {error}")));
        }
        self.slot = slot;
        self.payload_missing = if run.mode.is_write() { 0 } else { run.block_bytes };
        Ok(())
    }
}

async fn load(stream: StdStream, options: &Options, blocks: u64) -> io::Result<Run> {
    let stream = Rc::new(UnixStream::from_std(stream));
    let run = Rc::new(RefCell::new(Run::new(options, blocks)));
    let wake = Rc::new(Notify::new());
    for slot in 0..options.depth as usize {
        run.borrow_mut().issue(slot, Instant::now());
    }
    wake.notify_one();
    let sender = tokio_uring::spawn(send(Rc::clone(&stream), Rc::clone(&run), Rc::clone(&wake)));
    receive(&stream, &run, &wake).await?;
    sender.await.map_err(io::Error::other)??;
    let run = Rc::try_unwrap(run).map_err(|_| io::Error::other("the sender has ended"))?;
    Ok(run.into_inner())
}

async fn receive(stream: &UnixStream, run: &RefCell<Run>, wake: &Notify) -> io::Result<()> {
    let mut replies = Replies { header: [0; _], header_filled: 0, payload_missing: 0, slot: 0 };
    let mut buffer = vec![0; 512 << 10];
    while run.borrow().in_flight > 0 {
        let (result, back) = stream.read(buffer).await;
        buffer = back;
        let count = result?;
        if count == 0 {
            return Err(io::Error::other("the server closed the connection"));
        }
        replies.take(&buffer[..count], &mut run.borrow_mut())?;
        wake.notify_one();
    }
    Ok(())
}

/// Sends what is queued, all that there is at a time, until nothing is in flight.
async fn send(stream: Rc<UnixStream>, run: Rc<RefCell<Run>>, wake: Rc<Notify>) -> io::Result<()> {
    let mut spare = Vec::new();
    loop {
        let output = std::mem::replace(&mut run.borrow_mut().output, spare);
        if output.is_empty() {
            spare = output;
            if run.borrow().in_flight == 0 {
                return Ok(());
            }
            wake.notified().await;
            continue;
        }
        let (result, mut back) = stream.write_all(output).await;
        result?;
        back.clear();
        spare = back;
    }
}
