//! Both ends of what the bench measures: `load origin` is the server behind the agent, and most other modes are clients, which use CONNECT
//! with Basic credentials. The other modes are baselines, simulated agents and a relay. Each prints one JSON object per line.
mod agent_swarm;
mod bare;
mod bulk;
mod connect;
mod hops;
mod idle;
mod link;
mod origin;
mod quic;
mod rate;
mod rtt;
mod stats;
mod udp;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use bare::Bare;
use bulk::Direction;
use connect::Via;

const USAGE: &str = "usage:
  load origin [--listen 127.0.0.1:0]
  load down|up|both --target HOST:PORT [--tunnels 1] [--bytes 100000000]     bytes for each tunnel and direction
  load rate --target HOST:PORT [--clients 1] [--seconds 5 | --tunnels N]     for a time, or until N were opened
  load rtt  --target HOST:PORT [--seconds 5] [--size 64] [--beside]          --beside: a download in another tunnel
  load flow --target HOST:PORT [--head-start 2] [--seconds 10]               a download as it goes, then cut off
  load udp  --target HOST:PORT [--per-second 10000] [--size 1200] [--seconds 5]  datagrams to a published port, and back
  load idle --target HOST:PORT [--tunnels 100]                               holds them until standard input ends
clients reach the target through a proxy with: --proxy HOST:PORT --user ID:PASSWORD
  load swarm --quic HOST:PORT --ca FILE [--agents 100]                       idle agents of a proxy, until standard input ends
  load link --to HOST:PORT [--delay-ms 50] [--loss 0.01] [--host 127.0.0.1]  UDP relay, until standard input ends
baselines on bare QUIC:
  load bare --cert FILE --key FILE [--host 127.0.0.1]                        an origin; down, up, both, rate and rtt reach it with
                                                                             --quic HOST:PORT --ca FILE in place of --target
  load ingress --cert FILE --key FILE [--host 127.0.0.1]                     TCP to QUIC
  load egress --quic HOST:PORT --ca FILE --target HOST:PORT                  and back to TCP";

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
            let (way, tunnels, bytes) = (args.way()?, args.take("tunnels", 1)?, args.take("bytes", 100_000_000)?);
            args.finish()?;
            let direction = match mode.as_str() {
                "down" => Direction::Down,
                "up" => Direction::Up,
                _ => Direction::Both,
            };
            let result = match way {
                Way::Tcp(via) => bulk::run(single()?, via, direction, tunnels, bytes),
                Way::Quic(bare) => quic::runtime()?.block_on(bare::bulk(bare, direction, tunnels, bytes))?,
            };
            print(mode, result);
            Ok(())
        }
        "rate" => {
            let (way, clients, time) = (args.way()?, args.take("clients", 1)?, args.seconds("seconds", 5.0)?);
            let tunnels = args.take("tunnels", 0)?;
            args.finish()?;
            let result = match way {
                Way::Tcp(via) if tunnels > 0 => single()?.block_on(rate::run_count(via, clients, tunnels)),
                Way::Tcp(via) => single()?.block_on(rate::run(via, clients, time)),
                Way::Quic(bare) => quic::runtime()?.block_on(bare::rates(bare, clients, time))?,
            };
            print(mode, result);
            Ok(())
        }
        "rtt" => {
            let (way, time, size, beside) = (
                args.way()?,
                args.seconds("seconds", 5.0)?,
                args.take("size", 64)?,
                args.flag("beside"),
            );
            args.finish()?;
            let result = match way {
                Way::Tcp(via) => rtt::run(via, time, size, beside)?,
                Way::Quic(bare) => quic::runtime()?.block_on(bare::round_trips(bare, time, size, beside))?,
            };
            print(mode, result);
            Ok(())
        }
        "idle" => {
            let (via, tunnels) = (args.via()?, args.take("tunnels", 100)?);
            args.finish()?;
            let runtime = single()?;
            let (held, opened) = runtime.block_on(idle::open(via, tunnels));
            print(mode.clone(), opened);
            wait()?;
            print(mode, runtime.block_on(idle::check(held)));
            Ok(())
        }
        _ => run_beside(mode, args),
    }
}

/// The modes that are neither the origin nor its clients.
fn run_beside(mode: String, mut args: Args) -> Result<(), String> {
    match mode.as_str() {
        "flow" => {
            let (via, head_start, time) = (args.via()?, args.seconds("head-start", 2.0)?, args.seconds("seconds", 10.0)?);
            args.finish()?;
            print(mode, rtt::flow(&via, head_start, time)?);
            Ok(())
        }
        "udp" => {
            let (target, per_second, size) = (args.need("target")?, args.take("per-second", 10_000)?, args.take("size", 1_200)?);
            let time = args.seconds("seconds", 5.0)?;
            args.finish()?;
            print(mode, udp::run(&target, per_second, size, time)?);
            Ok(())
        }
        "swarm" => {
            let (proxy, ca, agents) = (args.need("quic")?, args.need("ca")?, args.take("agents", 100)?);
            args.finish()?;
            // one thread, in the background, which sends keep-alives
            let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(text)?;
            let (connections, connected) = runtime.block_on(agent_swarm::connect_all(proxy, &ca, agents))?;
            print(mode.clone(), connected);
            wait()?;
            let closed = agent_swarm::close_all(&connections);
            std::thread::sleep(Duration::from_millis(200)); // the ends reach the wire
            print(mode, closed);
            Ok(())
        }
        "link" => {
            let (host, to, delay, loss) = (args.host()?, args.need("to")?, args.take("delay-ms", 50)?, args.take("loss", 0.01)?);
            args.finish()?;
            link::run(host, &to, Duration::from_millis(delay), loss)
        }
        "bare" | "ingress" => {
            let (host, cert, key) = (args.host()?, args.need("cert")?, args.need("key")?);
            args.finish()?;
            let runtime = quic::runtime()?;
            if mode == "bare" {
                runtime.block_on(bare::serve(host, &cert, &key))
            } else {
                runtime.block_on(hops::ingress(host, &cert, &key))
            }
        }
        "egress" => {
            let (ingress, ca, target) = (args.need("quic")?, args.need("ca")?, args.need("target")?);
            args.finish()?;
            quic::runtime()?.block_on(hops::egress(&ingress, &ca, &target))
        }
        _ => Err(USAGE.into()),
    }
}

/// One thread, so that a client takes little of the cores that it shares with the programs it measures.
fn single() -> Result<Runtime, String> {
    Builder::new_current_thread().enable_all().build().map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Until standard input ends.
fn wait() -> Result<(), String> {
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line).map_err(text)? > 0 {}
    Ok(())
}

/// The result, with what this process itself cost.
fn print(mode: String, mut result: Value) {
    result["mode"] = mode.into();
    result["cpuSeconds"] = stats::cpu_seconds().into();
    println!("{result}");
}

/// How clients reach their origin.
enum Way {
    Tcp(Via),
    Quic(Bare),
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

    fn seconds(&mut self, name: &str, default: f64) -> Result<Duration, String> {
        Duration::try_from_secs_f64(self.take(name, default)?).map_err(|error| format!("Cannot use --{name}: {error}"))
    }

    fn need(&mut self, name: &str) -> Result<String, String> {
        self.0
            .remove(name)
            .ok_or_else(|| format!("Cannot start: --{name} is needed\n{USAGE}"))
    }

    /// The address to listen on.
    fn host(&mut self) -> Result<IpAddr, String> {
        self.take("host", IpAddr::from(Ipv4Addr::LOCALHOST))
    }

    fn way(&mut self) -> Result<Way, String> {
        match self.0.remove("quic") {
            None => Ok(Way::Tcp(self.via()?)),
            Some(address) => Ok(Way::Quic(Bare {
                address,
                ca: self.need("ca")?,
            })),
        }
    }

    fn via(&mut self) -> Result<Via, String> {
        let target = self.need("target")?;
        Ok(Via::new(target, self.0.remove("proxy"), self.0.remove("user")))
    }

    /// An option that no mode has taken is a mistake.
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
