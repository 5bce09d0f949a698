use super::*;

#[test]
fn a_path_too_long_for_a_socket_says_so() {
    let listen = Listen::Unix { path: PathBuf::from("/".to_owned() + &"x".repeat(200)), mode: 0o600 };
    let error = Bound::new(&listen).err().unwrap();
    assert_eq!((error.kind, error.remedy.is_empty()), (Kind::InvalidInput, false));
}

#[test]
fn a_taken_port_says_so() {
    let first = Bound::new(&Listen::Tcp("127.0.0.1:0".parse().unwrap())).unwrap();
    let error = Bound::new(&Listen::Tcp(first.address.unwrap())).err().unwrap();
    assert_eq!((error.kind, error.remedy.is_empty()), (Kind::InUse, false));
}

#[test]
fn a_socket_file_that_is_no_longer_ours_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let bound = Bound::new(&Listen::Unix { path: path.clone(), mode: 0o666 }).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "another's").unwrap();
    drop(bound);
    assert!(path.exists());
}
