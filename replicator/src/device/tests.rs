//! Opening, locking, measuring and falling back, on files of a real file system and of memory.

use super::*;

fn disk_file() -> tempfile::NamedTempFile {
    tempfile::NamedTempFile::new_in(std::env::current_dir().unwrap()).unwrap()
}

#[test]
fn a_device_in_use_is_named_with_its_holder() {
    let file = disk_file();
    let device = Device::open(file.path(), Purpose::Disk).unwrap();
    let error = Device::open(file.path(), Purpose::Disk).unwrap_err().to_string();
    assert!(error.contains("is in use by another process"), "{error}");
    assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    // The lock lives with the descriptor that does the I/O.
    let descriptor = device.into_file();
    assert!(Device::open(file.path(), Purpose::Disk).is_err());
    drop(descriptor);
    Device::open(file.path(), Purpose::Disk).unwrap();
}

#[test]
fn what_is_no_file_or_not_there_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Device::open(&dir.path().join("none"), Purpose::Journal).unwrap_err();
    assert!(missing.to_string().ends_with("does not exist"), "{missing}");
    let error = Device::open(Path::new("/dev/null"), Purpose::Disk).unwrap_err();
    assert!(matches!(error, DeviceError::Kind { .. }), "{error}");
}

#[test]
fn direct_io_is_used_where_it_can_be() {
    let file = disk_file();
    file.as_file().set_len(1 << 20).unwrap();
    let mut device = Device::open(file.path(), Purpose::Disk).unwrap();
    assert_eq!(device.backend(), Backend::Ring);
    assert_eq!(device.set_direct(DirectIo::Auto, 4096).unwrap(), None);
    assert!(device.is_direct());
    let flags = rustix::fs::fcntl_getfl(&device.file).unwrap();
    assert!(flags.contains(OFlags::DIRECT) && !flags.contains(OFlags::NONBLOCK));
}

#[test]
fn a_device_that_wants_larger_blocks_falls_back_or_refuses() {
    let file = disk_file();
    let mut device = Device::open(file.path(), Purpose::Disk).unwrap();
    let reason = device.set_direct(DirectIo::Auto, 64).unwrap().unwrap();
    assert!(reason.contains("wants blocks of"), "{reason}");
    assert!(!device.is_direct());
    let error = device.set_direct(DirectIo::On, 64).unwrap_err().to_string();
    assert!(error.contains("direct-io = \"auto\""), "{error}");
}

#[test]
fn memory_file_systems_get_direct_calls_and_no_direct_io() {
    let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    let mut device = Device::open(file.path(), Purpose::Disk).unwrap();
    assert_eq!(device.backend(), Backend::Inline);
    assert!(device.set_direct(DirectIo::Auto, 4096).unwrap().unwrap().contains("memory"));
    assert!(device.set_direct(DirectIo::On, 4096).is_err());
    assert_eq!(device.set_direct(DirectIo::Off, 4096).unwrap(), None);
}

#[test]
fn a_reset_file_is_all_zeros_and_blank_only_without_data() {
    let file = disk_file();
    let mut device = Device::open(file.path(), Purpose::Disk).unwrap();
    assert_eq!(device.is_blank(), Ok(true));
    device.write_at(4096, &[1; 4096]).unwrap();
    assert_eq!(device.is_blank(), Ok(false));
    device.reset(1 << 20, false).unwrap();
    assert_eq!((device.size_bytes(), device.is_blank()), (1 << 20, Ok(true)));
    let mut bytes = vec![1; 1 << 20];
    device.read_at(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    assert_eq!(device.read_at(1 << 20, &mut bytes[..1]), Err(Errno(libc::EIO)));
}
