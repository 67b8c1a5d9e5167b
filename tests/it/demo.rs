//! `reeve demo`, as somebody runs it who has just built it.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use reeve::demo::servers::{Folder, Signal};
use rustix::process::{Pid, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::support::until;

/// Its data folder will be one in `temporary`.
fn demo(temporary: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reeve"));
    command.arg("demo").args(args).env("TMPDIR", temporary).kill_on_drop(true);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The processes that have to do with the folder, whatever they call themselves.
fn processes(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let mut found = vec![];
    for process in fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path())) {
        let read = |name| fs::read(process.join(name)).unwrap_or_default();
        let about = [read("cmdline"), read("environ")].concat();
        let at = fs::read_link(process.join("cwd")).unwrap_or_default();
        if String::from_utf8_lossy(&about).contains(folder) || at.starts_with(folder) {
            found.push(String::from_utf8_lossy(&read("cmdline")).replace('\0', " "));
        }
    }
    found
}

async fn assert_nothing_is_left(temporary: &Path) {
    until("all processes end", Duration::from_secs(5), async || {
        let left = processes(temporary);
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    })
    .await;
    let left: Vec<_> = fs::read_dir(temporary).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

async fn output(child: Child) -> String {
    let output = child.wait_with_output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}\n{errors}", output.status);
    text
}

fn line<'a>(text: &'a str, start: &str) -> &'a str {
    let found = text.lines().find(|line| line.trim_start().starts_with(start));
    found.unwrap_or_else(|| panic!("no line begins with {start}:\n{text}"))
}

#[tokio::test]
async fn a_demo_shows_everything_and_leaves_nothing() {
    let folder = Folder::fresh("reeve-test").unwrap();
    let child = demo(folder.path(), &["--exit"]).spawn().unwrap();
    until("servers run", Duration::from_secs(20), async || {
        let running = processes(folder.path()).join("\n");
        let all = ["reeve demo", "reeve serve", "postgres", "redis-server"];
        if all.iter().all(|part| running.contains(part)) { Ok(()) } else { Err(running) }
    })
    .await;
    let text = output(child).await;

    assert!(text.contains("Wait until all 6 nodes agree and replicate"), "{text}");
    assert!(text.contains("1000 keys written and read again"), "{text}");
    let mut primaries = vec![];
    for (shard, slots) in ["0  ", "1  ", "2  "].iter().zip(["0-5460", "5461-10921", "10922-16383"])
    {
        let line = line(&text, shard);
        assert!(line.contains(slots) && line.ends_with("online"), "{line}");
        let zones: Vec<&str> = line.split('(').skip(1).map(|rest| &rest[..1]).collect();
        let [primary, replica] = zones[..] else { panic!("{line}") };
        assert_ne!(primary, replica, "{line}");
        primaries.push(primary);
    }
    primaries.sort_unstable();
    assert_eq!(primaries, ["a", "b", "c"], "each zone holds one primary");
    line(&text, "spare");
    line(&text, "Phase: steady");
    assert!(line(&text, "the loss of any zone").ends_with("yes"), "{text}");

    let url = line(&text, "URL").split_whitespace().nth(1).unwrap();
    let token = line(&text, "token").split_whitespace().nth(1).unwrap();
    let curls: Vec<&str> = text.lines().filter(|l| l.trim_start().starts_with("curl ")).collect();
    assert_eq!(curls.len(), 3, "{text}");
    assert!(curls.iter().all(|curl| curl.contains(url) && curl.contains(token)), "{curls:?}");
    assert_nothing_is_left(folder.path()).await;
}

#[tokio::test]
async fn two_demos_run_at_the_same_time_until_ctrl_c() {
    let folder = Folder::fresh("reeve-test").unwrap();
    let (mut lasting, exiting) = (demo(folder.path(), &[]), demo(folder.path(), &["--exit"]));
    let (mut lasting, mut exiting) = (lasting.spawn().unwrap(), { exiting }.spawn().unwrap());
    let mut lines = BufReader::new(lasting.stdout.take().unwrap()).lines();
    let stays = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("Ctrl-C") {
                return;
            }
        }
        panic!("it ends by itself");
    };
    tokio::time::timeout(Duration::from_secs(30), stays).await.unwrap();
    assert!(exiting.wait().await.unwrap().success());

    let pid = Pid::from_raw(lasting.id().unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(15), lasting.wait()).await;
    assert!(ended.unwrap().unwrap().success());
    assert_nothing_is_left(folder.path()).await;
}
