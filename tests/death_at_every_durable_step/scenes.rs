//! What is played. Between them the scenes get to every failpoint, each in the cheapest scene that does; a scene may end after the strike.

use super::lab::MIB;
use super::lab::client::FUA;
use super::scene::{Role, Scene};

/// The cheap ones first.
pub const NAMES: &[&str] = &[
    "protection",
    "keys, and a vault that is carried",
    "restarts",
    "a full log",
    "a log folder that goes away",
    "a state that cannot be written",
    "a restore",
    "a pruning",
    "a restore that fails",
];

/// Plays the scene called `name`, up to its end or the strike.
pub fn play(name: &str, mut scene: Scene) -> Scene {
    let acts: &[fn(&mut Scene)] = match name {
        "protection" => &[Scene::protect, write_durably, cut, cut, cut_much],
        "keys, and a vault that is carried" => &[Scene::protect, change_keys, carry],
        "restarts" => &[Scene::protect, kill_the_proxy, close_with_a_long_log],
        "a full log" => &[Scene::protect, fill_the_log, close_without_a_log],
        "a log folder that goes away" => &[Scene::protect, lose_the_log_folder],
        "a state that cannot be written" => &[Scene::protect, fill_the_log_of_a_disk_whose_state_is_refused],
        "a restore" => &[Scene::protect, restore],
        "a pruning" => &[Scene::protect, prune],
        "a restore that fails" => &[Scene::protect, fail_a_restore],
        other => panic!("there is no scene {other:?}"),
    };
    for act in acts {
        act(&mut scene);
        if scene.was_struck() {
            break;
        }
    }
    scene
}

fn write_durably(scene: &mut Scene) {
    scene.write_at(4096, 4096, FUA);
    scene.flush();
}

fn cut(scene: &mut Scene) {
    scene.write_some(32_768, 4096);
    scene.cut();
}

/// More than is embedded in the point.
fn cut_much(scene: &mut Scene) {
    scene.write_some(MIB, 65_536);
    scene.cut();
}

/// A second key comes and the first goes; under the second all goes on.
fn change_keys(scene: &mut Scene) {
    let second = scene.path("second.key").display().to_string();
    std::fs::write(&second, [2; 32]).expect("a key");
    if !scene.try_planned(&["vault", "key", "add", "--new-key-file", &second]) {
        scene.ask(&["vault", "key", "add", "--new-key-file", &second]);
    }
    let keys = scene.ask(&["vault", "key", "list"])["keys"].as_array().expect("keys").clone();
    let first = keys.iter().find(|key| key["used"] == true).expect("what opened it")["id"].clone();
    let home = scene.path("lifeboat.toml");
    let config = std::fs::read_to_string(&home).expect("a configuration");
    std::fs::write(&home, config.replace("vault.key", "second.key")).expect("a configuration");
    let remove = ["vault", "key", "remove", first.as_str().expect("an id")];
    if !scene.try_planned(&remove) {
        let left = scene.ask(&["vault", "key", "list"]);
        if left.to_string().contains(remove[3]) {
            scene.ask(&remove);
        }
    }
    scene.kill(Role::Uploader);
    scene.start(Role::Uploader);
    cut(scene);
}

/// What is there goes to another place, where it is the same.
fn carry(scene: &mut Scene) {
    cut(scene);
    let path = |name: &str| scene.path(name).display().to_string();
    let (from, far, key) = (path("vault"), format!("file://{}", path("far")), path("second.key"));
    let place = ["--vault", far.as_str(), "--key-file", key.as_str()];
    let import = [&["vault", "import", from.as_str()][..], &place].concat();
    if !scene.try_planned(&import) {
        scene.ask(&import);
    }
    let here = scene.ask(&["points", "m"]);
    assert_eq!(
        scene.ask(&[&["points", "m"][..], &place].concat()),
        here,
        "what was carried is what was there"
    );
}

fn kill_the_proxy(scene: &mut Scene) {
    cut(scene);
    scene.write_some(32_768, 4096);
    scene.kill(Role::Proxy);
    scene.start(Role::Proxy);
    scene.wait_protected();
    cut(scene);
}

/// Several segments, of which no cut has told the vault.
fn close_with_a_long_log(scene: &mut Scene) {
    scene.write_some(6 * MIB, MIB);
    scene.stop(Role::Proxy);
    scene.stop(Role::Uploader);
    scene.start(Role::Proxy);
    scene.start(Role::Uploader);
    cut(scene);
}

fn fill_the_log(scene: &mut Scene) {
    scene.overflow();
    scene.wait_protected();
    cut(scene);
}

/// The proxy looks after it every second or two.
fn lose_the_log_folder(scene: &mut Scene) {
    cut(scene);
    std::fs::remove_dir_all(scene.path("lifeboat-logs")).expect("the folder is there");
    while !scene.path("lifeboat-logs/m/d/state").exists() {
        scene.write_some(4096, 4096);
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    scene.write_some(32_768, 4096);
    scene.wait_protected();
    cut(scene);
}

fn close_without_a_log(scene: &mut Scene) {
    scene.ask(&["pause", "m"]);
    scene.overflow();
    scene.stop(Role::Proxy);
    scene.start(Role::Proxy);
    scene.write_some(32_768, 4096);
    scene.ask(&["resume", "m"]);
    scene.wait_protected();
    cut(scene);
}

fn fill_the_log_of_a_disk_whose_state_is_refused(scene: &mut Scene) {
    scene.kill(Role::Proxy);
    // The first time is the open.
    scene.besides = "StateWritten.Sync.before=fail@2";
    scene.start(Role::Proxy);
    fill_the_log(scene);
    scene.besides = "";
}

fn restore(scene: &mut Scene) {
    cut(scene);
    scene.restore("latest", true);
}

/// Two catalogues, of which the older one may go by the time.
fn prune(scene: &mut Scene) {
    cut(scene);
    cut(scene);
    for point in scene.points() {
        scene.run(&["pin", "m", &point]);
    }
    scene.age("vault/machines/m/catalogue");
    scene.run(&["prune", "m", "--no-wait"]);
}

fn fail_a_restore(scene: &mut Scene) {
    cut(scene);
    scene.besides = "RestoreSynced.Sync.before=fail";
    scene.restore("latest", true);
    scene.besides = "";
}
