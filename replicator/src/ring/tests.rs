//! The ring against a real kernel: files, socket pairs, listeners, and its own rules about memory.

use std::net::TcpListener;
use std::os::unix::net::UnixStream;

use super::*;

fn ring(defer_taskrun: bool) -> Ring<u32> {
    let arena = Memory::new(1 << 20, true).unwrap();
    Ring::new(RingOptions { defer_taskrun }, arena, 8).unwrap()
}

/// Waits for the next completion.
fn next<T: Copy>(ring: &mut Ring<T>) -> Completion<T> {
    let mut completions = Vec::new();
    for _ in 0..100 {
        ring.enter(Some(Duration::from_millis(100))).unwrap();
        ring.reap(&mut completions);
        if !completions.is_empty() {
            assert_eq!(completions.len(), 1, "the tests look at one at a time");
            return completions.remove(0);
        }
    }
    panic!("nothing completed");
}

fn span(start: usize, len: usize) -> Span {
    Span { start, len }
}

#[test]
fn a_file_is_written_synced_zeroed_and_read_with_all_flags() {
    for defer_taskrun in [false, true] {
        let mut ring = ring(defer_taskrun);
        let file = ring.add_file(tempfile::tempfile().unwrap().into()).unwrap();
        ring.arena_mut()[..8192].fill(7);
        ring.write(1, file, 4096, Place::Arena(span(0, 8192)));
        assert_eq!(next(&mut ring).result, Ok(8192));
        ring.sync(2, file);
        assert_eq!(next(&mut ring).result, Ok(0));
        ring.allocate(3, file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 4096, 4096);
        assert_eq!(next(&mut ring).result, Ok(0));
        let memory = ring.add_memory(16384).unwrap();
        ring.read(4, file, 0, Place::Local(memory, span(0, 16384)));
        let done = next(&mut ring);
        assert_eq!((done.tag, done.result), (4, Ok(12288)));
        assert!(ring.memory(memory)[..8192].iter().all(|byte| *byte == 0));
        assert!(ring.memory(memory)[8192..12288].iter().all(|byte| *byte == 7));
        assert_eq!(ring.slots.len(), 0);
    }
}

#[test]
fn direct_calls_do_the_same() {
    let mut ring = ring(false);
    let file = ring.add_file(tempfile::tempfile().unwrap().into()).unwrap();
    ring.arena_mut()[..8192].fill(7);
    assert_eq!(ring.write_now(file, 0, Place::Arena(span(0, 8192))), Ok(8192));
    assert_eq!(ring.sync_now(file), Ok(0));
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    assert_eq!(ring.allocate_now(file, punch, 0, 4096), Ok(0));
    assert_eq!(ring.read_now(file, 0, Place::Arena(span(65536, 8192))), Ok(8192));
    assert!(ring.arena()[65536..69632].iter().all(|byte| *byte == 0));
    assert!(ring.arena()[69632..73728].iter().all(|byte| *byte == 7));
}

#[test]
fn errors_are_error_numbers() {
    let mut ring = ring(false);
    let (reader, _writer) = std::io::pipe().unwrap();
    let file = ring.add_file(reader.into()).unwrap();
    ring.write(1, file, 0, Place::Arena(span(0, 10)));
    assert_eq!(next(&mut ring).result, Err(Errno(libc::EBADF)));
}

#[test]
fn a_gathered_send_arrives_in_order_and_whole() {
    let mut ring = ring(false);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let file = ring.add_file(ours.into()).unwrap();
    let memory = ring.add_memory(64).unwrap();
    ring.memory_mut(memory)[..10].copy_from_slice(b"headmiddle");
    // Far more than a socket buffer holds: the kernel goes on sending as the other side reads.
    ring.arena_mut().fill(b'x');
    let pieces = [
        Piece::Local(span(0, 4)),
        Piece::Arena(span(0, 1 << 20)),
        Piece::Local(span(4, 6)),
        Piece::Arena(span(5, 3)),
    ];
    ring.send(9, file, memory, &pieces);
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; (1 << 20) + 13];
        std::io::Read::read_exact(&mut theirs, &mut bytes).unwrap();
        bytes
    });
    assert_eq!(next(&mut ring).result, Ok((1 << 20) + 13));
    let bytes = reader.join().unwrap();
    assert_eq!(&bytes[..5], b"headx");
    assert_eq!(&bytes[bytes.len() - 10..], b"xmiddlexxx");
}

#[test]
fn a_whole_receive_waits_for_all_of_it_and_ends_with_the_stream() {
    let mut ring = ring(false);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let file = ring.add_file(ours.into()).unwrap();
    ring.receive(1, file, Place::Arena(span(100, 1000)), true);
    ring.enter(None).unwrap();
    for part in [&[1u8; 300][..], &[2; 700]] {
        std::thread::sleep(Duration::from_millis(5));
        std::io::Write::write_all(&mut theirs, part).unwrap();
    }
    assert_eq!(next(&mut ring).result, Ok(1000));
    assert_eq!((ring.arena()[100], ring.arena()[1099]), (1, 2));
    ring.receive(2, file, Place::Arena(span(0, 1000)), true);
    std::io::Write::write_all(&mut theirs, &[3; 10]).unwrap();
    drop(theirs);
    assert_eq!(next(&mut ring).result, Ok(10));
}

#[test]
fn one_accept_serves_many_and_connect_reaches_it() {
    let mut ring = ring(false);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let door = ring.add_file(listener.into()).unwrap();
    ring.accept(1, door);
    for _ in 0..3 {
        let _stream = std::net::TcpStream::connect(address).unwrap();
        let done = next(&mut ring);
        assert!(done.tag == 1 && done.more && done.accepted.is_some());
    }
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let file = ring.add_file(socket.into()).unwrap();
    ring.connect(2, file, address);
    let mut completions = Vec::new();
    while completions.len() < 2 {
        ring.enter(Some(Duration::from_millis(100))).unwrap();
        ring.reap(&mut completions);
    }
    assert!(completions.iter().all(|done| done.result.is_ok()));
}

#[test]
fn a_connect_that_hangs_is_cancelled() {
    let mut ring = ring(false);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let file = ring.add_file(socket.into()).unwrap();
    // A full backlog: the kernel drops further SYNs.
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let _first = std::net::TcpStream::connect(address).unwrap();
    ring.connect(1, file, address);
    ring.enter(Some(Duration::from_millis(50))).unwrap();
    ring.cancel_file(file);
    assert!(next(&mut ring).result.is_err());
}

#[test]
fn memory_outlives_its_operations() {
    let mut ring = ring(false);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let file = ring.add_file(ours.into()).unwrap();
    let memory = ring.add_memory(4096).unwrap();
    ring.receive(1, file, Place::Local(memory, span(0, 4096)), false);
    ring.enter(None).unwrap();
    ring.remove_memory(memory);
    assert!(ring.extras[0].is_some(), "the kernel may still write there");
    assert_ne!(ring.add_memory(4096).unwrap(), memory);
    std::io::Write::write_all(&mut theirs, b"late").unwrap();
    assert_eq!(next(&mut ring).result, Ok(4));
    assert!(ring.extras[0].is_none());
    // The same with an operation that never ends: the drop cancels it and waits.
    let memory = ring.add_memory(4096).unwrap();
    ring.receive(2, file, Place::Local(memory, span(0, 4096)), false);
    ring.enter(None).unwrap();
    drop(ring);
    drop(theirs);
}

#[test]
fn the_table_of_files_is_bounded_and_reused() {
    let mut ring = ring(false);
    let file = || tempfile::tempfile().unwrap().into();
    let files: Vec<FileId> = (0..8).map(|_| ring.add_file(file()).unwrap()).collect();
    assert!(ring.add_file(file()).is_err());
    ring.remove_file(files[3]);
    assert_eq!(ring.add_file(file()).unwrap(), files[3]);
}

#[test]
fn more_operations_than_the_queue_holds_all_complete() {
    let mut ring = ring(false);
    let file = ring.add_file(tempfile::tempfile().unwrap().into()).unwrap();
    let count = 3 * SUBMISSIONS;
    for index in 0..count {
        ring.write(index, file, u64::from(index) * 512, Place::Arena(span(0, 512)));
    }
    let mut completions = Vec::new();
    while completions.len() < count as usize {
        ring.enter(Some(Duration::from_secs(1))).unwrap();
        ring.reap(&mut completions);
    }
    assert!(completions.iter().all(|done| done.result == Ok(512)));
}

#[test]
#[should_panic(expected = "stays inside its memory")]
fn a_span_outside_its_memory_is_a_bug() {
    let mut ring = ring(false);
    let file = ring.add_file(tempfile::tempfile().unwrap().into()).unwrap();
    ring.write(1, file, 0, Place::Arena(span((1 << 20) - 10, 11)));
}
