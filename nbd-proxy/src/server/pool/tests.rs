use std::sync::mpsc;

use super::*;

struct Call(Box<dyn FnOnce() + Send>);

impl Task for Call {
    fn run(self) {
        (self.0)();
    }
}

#[test]
fn tasks_run_side_by_side_up_to_the_limit() {
    let pool = Pool::new(3);
    let (started, starts) = mpsc::channel();
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    for index in 0..6 {
        let (started, gate) = (started.clone(), Arc::clone(&gate));
        pool.submit(Call(Box::new(move || {
            started.send(index).unwrap();
            let mut open = gate.0.lock().unwrap();
            while !*open {
                open = gate.1.wait(open).unwrap();
            }
        })));
    }
    let mut first: Vec<i32> = (0..3).map(|_| starts.recv_timeout(IDLE).unwrap()).collect();
    first.sort_unstable();
    assert_eq!(first, [0, 1, 2], "three at once, in the order they came");
    assert!(starts.recv_timeout(Duration::from_millis(50)).is_err(), "and no more");
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    let rest: Vec<i32> = (0..3).map(|_| starts.recv_timeout(IDLE).unwrap()).collect();
    assert_eq!(rest.len(), 3);
    pool.close();
}

#[test]
fn close_finishes_what_is_queued() {
    let pool = Pool::new(1);
    let count = Arc::new(Mutex::new(0));
    for _ in 0..100 {
        let count = Arc::clone(&count);
        pool.submit(Call(Box::new(move || *count.lock().unwrap() += 1)));
    }
    pool.close();
    assert_eq!(*count.lock().unwrap(), 100);
}

#[test]
fn an_idle_thread_is_used_again() {
    let pool = Pool::new(8);
    let (sender, receiver) = mpsc::channel();
    for _ in 0..20 {
        let sender = sender.clone();
        pool.submit(Call(Box::new(move || sender.send(()).unwrap())));
        receiver.recv_timeout(IDLE).unwrap();
        let resting = || {
            let state = pool.lock();
            state.idle == state.running
        };
        while !resting() {
            thread::yield_now();
        }
    }
    assert_eq!(pool.lock().running, 1);
    pool.close();
}
