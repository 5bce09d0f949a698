use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::*;

const LIMIT: usize = 1 << 20;

fn pair() -> (Socket, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Socket::new(OwnedFd::from(ours)).unwrap(), theirs)
}

fn received(theirs: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    theirs.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn pieces_go_out_in_order_and_small_ones_together() {
    let (socket, mut theirs) = pair();
    let outbox = Outbox::<()>::new(LIMIT);
    outbox.push(b"a");
    outbox.push(b"b");
    outbox.push_buffer(b"cdX".to_vec(), 2);
    outbox.push(b"e");
    assert_eq!(outbox.lock().queue.len(), 3);
    assert!(outbox.send(&socket, b"f").is_empty());
    assert_eq!(received(&mut theirs, 6), b"abcdef");
}

#[test]
fn a_worker_leaves_what_the_socket_does_not_take_and_rings() {
    let (socket, mut theirs) = pair();
    let outbox = Outbox::<()>::new(LIMIT);
    let body: Vec<u8> = (0..LIMIT).map(|at| u8::try_from(at % 251).unwrap()).collect();
    outbox.push_buffer(body.clone(), LIMIT);
    assert!(outbox.pump(&socket, Patience::Never).is_empty());
    assert!(outbox.is_stalled());
    assert_eq!(socket.wait(false, false, None).unwrap(), super::super::socket::Wake::Bell);
    let reader = std::thread::spawn(move || received(&mut theirs, LIMIT));
    assert!(outbox.pump(&socket, Patience::Wait).is_empty());
    assert!(reader.join().unwrap() == body);
    assert!(!outbox.is_stalled());
}

#[test]
fn parked_work_goes_on_when_the_queue_has_shrunk() {
    let (socket, mut theirs) = pair();
    let outbox = Outbox::<u8>::new(LIMIT);
    assert_eq!(outbox.park(1), Some(1), "nothing is queued");
    outbox.push_buffer(vec![0; LIMIT], LIMIT);
    assert_eq!(outbox.park(2), None);
    assert!(outbox.pump(&socket, Patience::Never).is_empty(), "too much is queued still");
    let reader = std::thread::spawn(move || received(&mut theirs, LIMIT).len());
    assert_eq!(outbox.pump(&socket, Patience::Wait), [2]);
    assert_eq!(reader.join().unwrap(), LIMIT);
}

#[test]
fn what_is_in_flight_is_bounded_but_one_request_always_fits() {
    let (socket, _theirs) = pair();
    let outbox = Outbox::<()>::new(100);
    assert!(outbox.admit(1000, false), "alone it fits");
    assert!(!outbox.admit(1, true));
    outbox.ended(&socket, 1000);
    assert_eq!(socket.wait(false, false, None).unwrap(), super::super::socket::Wake::Bell);
    for _ in 0..MAX_JOBS {
        assert!(outbox.admit(0, false));
    }
    assert!(!outbox.admit(0, false), "so is their number");
}

#[test]
fn a_body_keeps_other_replies_back() {
    let (socket, mut theirs) = pair();
    let outbox = Outbox::<()>::new(LIMIT);
    outbox.push(b"1");
    assert!(outbox.begin_body());
    outbox.send_queue(&socket).unwrap();
    socket.send_all(b"he").unwrap();
    outbox.push(b"2");
    assert!(outbox.pump(&socket, Patience::Never).is_empty());
    socket.send_all(b"ad").unwrap();
    outbox.end_body();
    assert!(outbox.pump(&socket, Patience::Never).is_empty());
    assert_eq!(received(&mut theirs, 6), b"1head2");
}

#[test]
fn when_the_client_is_gone_everything_is_dropped() {
    let (socket, theirs) = pair();
    drop(theirs);
    let outbox = Outbox::<u8>::new(10);
    outbox.push(&[0; 100]);
    assert_eq!(outbox.park(3), None);
    assert_eq!(outbox.send(&socket, b"x"), [3], "parked work is handed back to end");
    assert!(outbox.is_broken() && socket.halted());
    outbox.push(b"more");
    assert!(!outbox.is_stalled() && !outbox.begin_body());
}

#[test]
fn few_receive_buffers_are_out_and_they_come_back() {
    let outbox = Outbox::<()>::new(1 << 20);
    let given: Vec<_> = std::iter::from_fn(|| outbox.begin_slab(64)).collect();
    assert_eq!(given.len(), SLABS);
    for mut slab in given {
        slab[0] = 7;
        outbox.end_slab(slab);
    }
    assert_eq!(outbox.begin_slab(64).unwrap()[0], 7, "memory in use before is used again");
    outbox.drop_spares();
    assert_eq!(outbox.begin_slab(64).unwrap()[0], 0, "and freed when asked");
}
