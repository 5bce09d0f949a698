use super::*;

fn receive(inbox: &mut Inbox, wanted: usize, bytes: &[u8]) {
    let space = inbox.space(wanted);
    space[..bytes.len()].copy_from_slice(bytes);
    inbox.received(bytes.len());
}

#[test]
fn an_inbox_makes_room_for_a_whole_message() {
    let mut inbox = Inbox::new(8);
    receive(&mut inbox, 4, b"abcdef");
    inbox.consume(4);
    assert_eq!(inbox.bytes(), b"ef");
    let position = inbox.position();
    assert_eq!(inbox.at(position, 1), b"e");
    assert_eq!(inbox.space(4).len(), 2, "four bytes fit behind: nothing is moved");
    assert_eq!(inbox.space(5).len(), 6, "five do not");
    receive(&mut inbox, 5, b"ghi");
    assert_eq!(inbox.bytes(), b"efghi");
    inbox.consume(5);
    assert_eq!(inbox.space(1).len(), 8, "an empty inbox begins anew");
}

#[test]
fn a_full_inbox_always_gives_room_once_something_is_consumed() {
    let mut inbox = Inbox::new(4);
    receive(&mut inbox, 4, b"abcd");
    inbox.consume(1);
    assert_eq!(inbox.space(1).len(), 1);
    assert_eq!(inbox.bytes(), b"bcd");
}

#[test]
fn staging_goes_back_to_a_mark() {
    let mut out = Staging::new(8);
    out.put(b"abc");
    let mark = out.len();
    out.extend(2).unwrap().copy_from_slice(b"de");
    assert_eq!((out.bytes(), out.room()), (&b"abcde"[..], 3));
    assert!(out.extend(4).is_none());
    out.truncate(mark);
    assert_eq!(out.bytes(), b"abc");
}

#[test]
fn bulky_buffers_are_given_back_only_when_empty() {
    let mut inbox = Inbox::new(4 * KEEP);
    receive(&mut inbox, 1, &vec![1; 2 * KEEP]);
    assert!(!inbox.is_bulky());
    inbox.consume(2 * KEEP);
    assert!(inbox.is_bulky());
    inbox.renew();
    assert!(!inbox.is_bulky() && inbox.capacity() == 4 * KEEP);
}

#[test]
fn an_inbox_gives_its_memory_away_and_goes_on_with_other() {
    let mut inbox = Inbox::new(8);
    receive(&mut inbox, 4, b"abcd");
    inbox.consume(4);
    let memory = inbox.give_away(vec![9; 8]);
    assert_eq!((&memory[..4], inbox.capacity()), (&b"abcd"[..], 8));
    receive(&mut inbox, 4, b"next");
    assert_eq!(inbox.bytes(), b"next");
}

#[test]
fn a_grown_inbox_goes_on_with_what_is_unread() {
    let mut inbox = Inbox::new(8);
    receive(&mut inbox, 8, b"abcdefgh");
    inbox.consume(3);
    let mut grown = inbox.grown(16);
    assert_eq!((grown.bytes(), grown.capacity()), (&b"defgh"[..], 16));
    receive(&mut grown, 16, b"ijk");
    assert_eq!(grown.bytes(), b"defghijk");
    assert_eq!(inbox.grown(2).bytes(), b"defgh", "nothing unread is lost");
}
