use super::*;

#[test]
fn a_job_s_record_survives_and_says_how_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = Jobs::open(&dir.path().join("jobs")).unwrap();
    assert!(jobs.list().unwrap().is_empty());
    let mut running = jobs.start(JobKind::Restore, "m", "asked for").unwrap();
    running.bytes_done = 5;
    jobs.save(&running).unwrap();
    let failed = jobs.start(JobKind::Resync, "m", "log full").unwrap();
    let error = Error::new(Kind::NoSpace, "disk", "is full");
    jobs.end(failed.clone(), Err(&error)).unwrap();

    let again = Jobs::open(&dir.path().join("jobs")).unwrap();
    let list = again.list().unwrap();
    assert_eq!(list.len(), 2);
    assert_eq!(again.get(running.id).unwrap(), Some(running.clone()));
    let ended = list.iter().find(|job| job.id == failed.id).unwrap();
    assert_eq!((ended.state, ended.error.as_deref()), (JobState::Failed, Some("disk: is full")));
    assert!(ended.ended.is_some());
    let done = again.end(running, Ok(())).unwrap();
    assert_eq!((done.state, done.bytes_done), (JobState::Done, 5));
    assert_eq!(again.get(Uuid::nil()).unwrap(), None);
}

#[test]
fn a_broken_record_hides_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = Jobs::open(dir.path()).unwrap();
    jobs.start(JobKind::InitialReplication, "m", "new").unwrap();
    let broken = Uuid::new_v4();
    std::fs::write(dir.path().join(format!("{broken}.json")), "{").unwrap();
    assert_eq!(jobs.list().unwrap().len(), 1);
    assert_eq!(jobs.get(broken).unwrap_err().kind, Kind::Corrupt);
}

#[test]
fn old_records_go_and_running_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = Jobs::open(dir.path()).unwrap();
    let running = jobs.start(JobKind::Restore, "m", "first").unwrap();
    for number in (0i64..).take(KEEP + 5) {
        let mut job = running.clone();
        job.id = Uuid::new_v4();
        job.state = JobState::Done;
        job.started = Timestamp::from_second(number).unwrap();
        jobs.save(&job).unwrap();
    }
    jobs.start(JobKind::Restore, "m", "next").unwrap();
    let list = jobs.list().unwrap();
    assert_eq!(list.len(), KEEP + 2);
    assert!(list.iter().any(|job| job.id == running.id));
}
