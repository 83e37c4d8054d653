//! Both ends of what the bench measures: `load origin` is the server behind the agent, every other mode is its clients. It prints one JSON
//! object a line. It knows CONNECT and Basic credentials, and nothing else of what is between the two.
mod bulk;
mod connect;
mod idle;
mod origin;
mod rate;
mod rtt;
mod stats;

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use bulk::Direction;
use connect::Via;

const USAGE: &str = "usage:
  load origin [--listen 127.0.0.1:0]
  load down|up|both --target HOST:PORT [--tunnels 1] [--bytes 100000000]     bytes for each tunnel and direction
  load rate --target HOST:PORT [--clients 1] [--seconds 5]
  load rtt  --target HOST:PORT [--seconds 5] [--size 64] [--beside]          --beside: a download in another tunnel
  load idle --target HOST:PORT [--tunnels 100]                               holds them until standard input ends
clients reach the target through a proxy with: --proxy HOST:PORT --user ID:PASSWORD";

fn main() -> ExitCode {
    raise_file_limit();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let mut words = std::env::args().skip(1);
    let mode = words.next().ok_or(USAGE)?;
    let mut args = Args::parse(words)?;
    match mode.as_str() {
        "origin" => {
            let listen: String = args.take("listen", "127.0.0.1:0".into())?;
            args.finish()?;
            // so that an echo never waits behind an accept
            Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .map_err(text)?
                .block_on(origin::serve(&listen))
        }
        "down" | "up" | "both" => {
            let (via, tunnels, bytes) = (args.via()?, args.take("tunnels", 1)?, args.take("bytes", 100_000_000)?);
            args.finish()?;
            let direction = match mode.as_str() {
                "down" => Direction::Down,
                "up" => Direction::Up,
                _ => Direction::Both,
            };
            print(mode, bulk::run(single()?, via, direction, tunnels, bytes));
            Ok(())
        }
        "rate" => {
            let (via, clients, seconds) = (args.via()?, args.take("clients", 1)?, args.take("seconds", 5.0)?);
            args.finish()?;
            print(mode, single()?.block_on(rate::run(via, clients, Duration::from_secs_f64(seconds))));
            Ok(())
        }
        "rtt" => {
            let (via, seconds, size, beside) = (args.via()?, args.take("seconds", 5.0)?, args.take("size", 64)?, args.flag("beside"));
            args.finish()?;
            print(mode, rtt::run(via, Duration::from_secs_f64(seconds), size, beside)?);
            Ok(())
        }
        "idle" => {
            let (via, tunnels) = (args.via()?, args.take("tunnels", 100)?);
            args.finish()?;
            let runtime = single()?;
            let (held, opened) = runtime.block_on(idle::open(via, tunnels));
            print(mode.clone(), opened);
            let mut line = String::new();
            while std::io::stdin().read_line(&mut line).map_err(text)? > 0 {}
            print(mode, runtime.block_on(idle::check(held)));
            Ok(())
        }
        _ => Err(USAGE.into()),
    }
}

/// One thread: a client costs as little as it can of what it shares with the programs it measures.
fn single() -> Result<Runtime, String> {
    Builder::new_current_thread().enable_all().build().map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The result, with what this process itself cost.
fn print(mode: String, mut result: Value) {
    result["mode"] = mode.into();
    result["cpuSeconds"] = stats::cpu_seconds().into();
    println!("{result}");
}

/// `--name value` pairs and `--name` flags.
struct Args(HashMap<String, String>);

impl Args {
    fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut given = HashMap::new();
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").ok_or_else(|| format!("Cannot use {word:?}\n{USAGE}"))?;
            let value = words.next_if(|next| !next.starts_with("--")).unwrap_or_default();
            given.insert(name.to_string(), value);
        }
        Ok(Self(given))
    }

    fn take<T: std::str::FromStr>(&mut self, name: &str, default: T) -> Result<T, String> {
        match self.0.remove(name) {
            None => Ok(default),
            Some(value) => value
                .parse()
                .map_err(|_| format!("Cannot use --{name}: current value is {value:?}")),
        }
    }

    fn flag(&mut self, name: &str) -> bool {
        self.0.remove(name).is_some()
    }

    fn via(&mut self) -> Result<Via, String> {
        let target = self.0.remove("target").ok_or("Cannot start: --target is needed")?;
        Ok(Via::new(target, self.0.remove("proxy"), self.0.remove("user")))
    }

    /// What nobody took is a mistake.
    fn finish(self) -> Result<(), String> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(format!("Cannot use --{name}: there is no such option\n{USAGE}")),
        }
    }
}

/// Thousands of tunnels need as many descriptors.
fn raise_file_limit() {
    // SAFETY: both calls only read or write the structure they are given, which lives on this stack
    unsafe {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
