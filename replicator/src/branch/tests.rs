//! A branch is written and read back; what is damaged is not believed.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::*;
use replicator_core::command::BranchPlan;

const VOLUME_BYTES: u64 = (4 << 20) + 1536;

fn base(sequence: u64) -> Base {
    Base {
        position: Position { epoch: Epoch(3), sequence: Sequence(sequence) },
        chain: Chain(0xabcd_0123_4567),
    }
}

fn plan() -> BranchPlan {
    let mut blocks = DirtyMap::new(VOLUME_BYTES, keep::map_room(VOLUME_BYTES));
    blocks.set_bytes(8192, 4096);
    blocks.set_bytes(1 << 20, 8192);
    blocks.set_bytes(4 << 20, 512);
    BranchPlan { common: base(7), head: base(42), blocks, is_everything: false }
}

fn disk(folder: &Path) -> File {
    let path = folder.join("disk");
    let disk = create(&path).unwrap();
    disk.set_len(VOLUME_BYTES).unwrap();
    disk.write_all_at(&[5; 4096], 8192).unwrap();
    disk.write_all_at(&[6; 1024], (1 << 20) + 4096).unwrap();
    disk.write_all_at(&[7; 1536], 4 << 20).unwrap();
    disk
}

fn kept(folder: &Path) -> Branches {
    let branches = Branches::new(&folder.join("branches"), "r0", VolumeId(9));
    branches.keep(&plan(), VOLUME_BYTES, 1_700_000_000_123, disk(folder).as_fd()).unwrap();
    branches
}

#[test]
fn what_is_kept_is_read_back_and_the_rest_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let branches = kept(folder.path());
    let list = branches.list().unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!((list[0].name.as_str(), list[0].blocks), ("3-42-01234567", 4));
    assert_eq!((list[0].common, list[0].head, list[0].kept_ms), (base(7), base(42), 1_700_000_000_123));
    assert!(list[0].stored_bytes < 1 << 20, "what is not kept takes no space");
    let branch = branches.open("3-42-01234567").unwrap();
    let mut bytes = [1; 4096];
    branch.read_block(2, &mut bytes).unwrap();
    assert_eq!(bytes, [5; 4096]);
    branch.read_block(257, &mut bytes).unwrap();
    assert_eq!((bytes[1023], bytes[1024]), (6, 0));
    branch.read_block(1024, &mut bytes[..1536]).unwrap();
    assert_eq!(bytes[..1536], [7; 1536]);
    branch.read_block(3, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 4096]);
    assert!(branch.keeps(256) && !branch.keeps(3));
    assert_eq!(branches.blocks_of(base(42)).unwrap().dirty_blocks(), 4);
    assert!(branches.blocks_of(base(43)).is_none());
    branches.delete("3-42-01234567").unwrap();
    assert!(branches.list().unwrap().is_empty());
    branches.delete("3-42-01234567").unwrap_err();
    branches.delete("../disk").unwrap_err();
}

#[test]
fn damage_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let branches = kept(folder.path());
    let path = branches.path("3-42-01234567");
    let layout = branches.open("3-42-01234567").unwrap().layout;
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[9], layout.data_at + 8192 + 77).unwrap();
    let branch = branches.open("3-42-01234567").unwrap();
    assert!(branch.read_block(2, &mut [0; 4096]).unwrap_err().to_string().contains("block 2"));
    branch.read_block(256, &mut [0; 4096]).unwrap();
    file.write_all_at(&[9], 4096 + 70).unwrap();
    assert!(branches.open("3-42-01234567").is_err());
    assert!(branches.list().unwrap().is_empty());
}

#[test]
fn a_branch_that_cannot_be_kept_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let branches = Branches::new(&folder.path().join("branches"), "r0", VolumeId(9));
    let short = create(&folder.path().join("short")).unwrap();
    branches.keep(&plan(), VOLUME_BYTES, 5, short.as_fd()).unwrap_err();
    assert_eq!(fs::read_dir(folder.path().join("branches")).unwrap().count(), 0);
    // A file where the folder should be.
    let blocked = Branches::new(&folder.path().join("short"), "r0", VolumeId(9));
    blocked.keep(&plan(), VOLUME_BYTES, 5, disk(folder.path()).as_fd()).unwrap_err();
}
