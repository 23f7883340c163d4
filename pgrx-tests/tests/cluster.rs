//! The throwaway cluster keeps what it promises, above all that nothing of it is left.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rowsync_harness::{Cluster, Shutdown, await_until, fails, reaper};

const MAX_WAIT: Duration = Duration::from_secs(20);

#[test]
fn it_starts_and_leaves_nothing_when_dropped() {
    let cluster = Cluster::start("plain").unwrap();
    let row = cluster
        .superuser("postgres")
        .unwrap()
        .query_one("show fsync", &[])
        .unwrap();
    assert_eq!(row.get::<_, &str>(0), "off");
    let dir = cluster.dir().to_owned();
    let data = cluster.dir().join("data");
    assert!(!cluster.processes().is_empty());
    drop(cluster);
    assert!(!dir.exists());
    assert!(reaper::processes_in(&data).is_empty());
}

#[test]
fn a_wrong_password_is_turned_away() {
    let cluster = Cluster::start_with("password", &[]).unwrap();
    let mut client = cluster.superuser("postgres").unwrap();
    let row = client.query_one("show fsync", &[]).unwrap();
    assert_eq!(row.get::<_, &str>(0), "on");
    let error = fails(cluster.connect("postgres", "postgres", "wrong"));
    assert_eq!(error.code().code(), "28P01");
}

#[test]
fn it_survives_stops_kills_and_a_lost_backend_on_the_same_port() {
    let cluster = Cluster::start("stops").unwrap();
    let port = cluster.port();
    let mut client = cluster.superuser("postgres").unwrap();
    client
        .batch_execute("create table kept as select 42 as answer; checkpoint")
        .unwrap();
    drop(client);
    for how in [Shutdown::Smart, Shutdown::Fast, Shutdown::Immediate] {
        cluster.stop(how).unwrap();
        assert!(cluster.processes().is_empty() && cluster.pid().is_err());
        assert!(cluster.superuser("postgres").is_err());
        cluster.start_again().unwrap();
    }
    cluster.kill().unwrap();
    assert!(cluster.processes().is_empty());
    cluster.start_again().unwrap();
    cluster.restart().unwrap();

    let mut client = cluster.superuser("postgres").unwrap();
    let backend: i32 = client
        .query_one("select pg_backend_pid()", &[])
        .unwrap()
        .get(0);
    cluster.crash_backend(backend).unwrap();
    assert!(client.simple_query("select 1").is_err());
    assert!(cluster.signal_backend(1, Signal::SIGKILL).is_err());

    let row = cluster
        .superuser("postgres")
        .unwrap()
        .query_one("select answer from kept", &[]);
    assert_eq!(row.unwrap().get::<_, i32>(0), 42);
    assert_eq!(cluster.port(), port);
    assert!(cluster.log().contains("database system is ready"));
}

#[test]
fn a_frozen_cluster_goes_on_when_thawed_and_can_be_dropped_frozen() {
    let cluster = Cluster::start("frozen").unwrap();
    let mut client = cluster.superuser("postgres").unwrap();
    let state = |pid: Pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ")
            .next()
            .and_then(|rest| rest.chars().next())
    };
    cluster.freeze().unwrap();
    await_until(MAX_WAIT, "all stopped", || {
        cluster
            .processes()
            .into_iter()
            .all(|pid| state(pid) == Some('T'))
    });
    cluster.thaw().unwrap();
    client.batch_execute("select 1").unwrap();
    cluster.freeze().unwrap();
    let data = cluster.dir().join("data");
    drop(cluster);
    assert!(reaper::processes_in(&data).is_empty());
}

#[test]
#[ignore = "the victim of the next test, not a test of its own"]
fn victim() {
    let running = Cluster::start("running").unwrap();
    let frozen = Cluster::start("frozen").unwrap();
    frozen.freeze().unwrap();
    println!("victim of {}", running.dir().parent().unwrap().display());
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn nothing_is_left_when_the_process_is_killed() {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let base = lines
        .map_while(Result::ok)
        .find_map(|line| Some(line.split_once("victim of ")?.1.to_owned()))
        .expect("the victim's directory");
    let data: Vec<_> = std::fs::read_dir(&base)
        .unwrap()
        .flatten()
        .map(|entry| entry.path().join("data"))
        .filter(|data| data.exists())
        .collect();
    let alive = || {
        data.iter()
            .any(|data| !reaper::processes_in(data).is_empty())
    };
    assert!(data.len() == 2 && alive());
    kill(Pid::from_raw(victim.id() as i32), Signal::SIGKILL).unwrap();
    victim.wait().unwrap();
    await_until(MAX_WAIT, "the watchdog", || {
        !Path::new(&base).exists() && !alive()
    });
}
