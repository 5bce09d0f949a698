use super::*;

#[test]
fn a_saved_bitmap_comes_back_whole_and_only_for_its_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bitmap");
    let (disk, tracking, size) = (Uuid::new_v4(), Uuid::new_v4(), 1 << 30);
    let mut dirty = DirtyBitmap::new(size);
    dirty.mark(0, 1);
    dirty.mark(500 << 20, 300 << 20);
    assert!(load(&path, disk, tracking, size).unwrap().is_none());
    save(&path, disk, tracking, &dirty, true).unwrap();
    let (found, suspect) = load(&path, disk, tracking, size).unwrap().unwrap();
    assert!(suspect);
    assert_eq!((found.bytes(), found.next_run(4096)), (dirty.bytes(), dirty.next_run(4096)));
    assert!(load(&path, Uuid::new_v4(), tracking, size).unwrap().is_none());
    assert!(load(&path, disk, Uuid::new_v4(), size).unwrap().is_none());
    assert!(load(&path, disk, tracking, size * 2).unwrap().is_none());
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 4;
        std::fs::write(&path, flipped).unwrap();
        assert!(load(&path, disk, tracking, size).unwrap().is_none(), "byte {at}");
    }
    std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    assert!(load(&path, disk, tracking, size).unwrap().is_none());
}
