//! A client that reads and writes while slots move, on a schedule that waits for nobody: what it
//! counts is the time from when a command was due.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redis::{Connection, ConnectionLike, RedisError, RedisResult, ServerErrorKind, Value};
use reeve::domain::slot::SlotSet;

use super::bench::Error;
use super::keys::{Keys, VALUE};

const EVERY: Duration = Duration::from_millis(2);
/// How often one command is sent on to another node.
const REDIRECTS: usize = 8;
/// How long an answer may take before it counts as none.
const ANSWER: Duration = Duration::from_secs(10);

/// Keeps on until it is stopped.
pub struct Traffic {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Record>,
}

/// What the client saw.
#[derive(Debug, Default, Clone)]
pub struct Record {
    /// Sorted.
    latencies: Vec<Duration>,
    /// What it should never have seen.
    pub errors: Vec<String>,
}

impl Traffic {
    /// Reads and writes keys in turn, all over; or only reads them, and finds none.
    pub fn start(
        owners: &BTreeMap<String, SlotSet>,
        keys: &Keys,
        writes: bool,
    ) -> Result<Self, Error> {
        let mut client = Client::new(owners)?;
        let over = Arc::new(AtomicBool::new(false));
        let (end, keys) = (over.clone(), keys.clone());
        // A thread of its own, since timers of the runtime are a millisecond coarse.
        let thread = std::thread::spawn(move || client.run(&end, &keys, writes));
        Ok(Self { over, thread })
    }

    pub async fn stop(self) -> Result<Record, Error> {
        self.over.store(true, Ordering::Relaxed);
        let joined = tokio::task::spawn_blocking(|| self.thread.join()).await?;
        joined.map_err(|_| "the client panicked".into())
    }
}

impl Record {
    /// What so many of a thousand did not exceed.
    pub fn per_mille(&self, part: usize) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get(last * part / 1000).copied().unwrap_or_default()
    }
}

struct Client {
    connections: BTreeMap<String, Connection>,
    owners: Vec<String>,
}

impl Client {
    fn new(owners: &BTreeMap<String, SlotSet>) -> Result<Self, Error> {
        let mut client =
            Self { connections: BTreeMap::new(), owners: vec![String::new(); 1 << 14] };
        for (node, slots) in owners {
            slots.iter().for_each(|slot| client.owners[usize::from(slot)].clone_from(node));
            client.connections.insert(node.clone(), connect(node)?);
        }
        Ok(client)
    }

    fn run(&mut self, over: &AtomicBool, keys: &Keys, writes: bool) -> Record {
        let mut record = Record::default();
        let mut due = Instant::now();
        for n in 0.. {
            due += EVERY;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if over.load(Ordering::Relaxed) {
                break;
            }
            // A large prime leads everywhere.
            let (slot, key) = keys.get((n * 7_368_787) % keys.count);
            let is_write = writes && n % 2 == 1;
            let command = if is_write {
                redis::cmd("SET").arg(&key).arg(&VALUE).get_packed_command()
            } else {
                redis::cmd("GET").arg(&key).get_packed_command()
            };
            let answer = self.ask(slot, &command);
            record.latencies.push(due.elapsed());
            let should = match &answer {
                Ok(Value::Okay) => is_write,
                Ok(Value::BulkString(value)) => writes && !is_write && *value == VALUE,
                Ok(Value::Nil) => !writes,
                Ok(_) | Err(_) => false,
            };
            if !should {
                record.errors.push(format!("{key}: {answer:?}"));
            }
        }
        record.latencies.sort_unstable();
        record
    }

    fn ask(&mut self, slot: u16, command: &[u8]) -> RedisResult<Value> {
        let mut to = self.owners[usize::from(slot)].clone();
        let mut asking = false;
        for _ in 0..REDIRECTS {
            let connection = self.connection(&to)?;
            let answer = if asking {
                let both = [&redis::cmd("ASKING").get_packed_command(), command].concat();
                connection.req_packed_commands(&both, 1, 1)?.remove(0)
            } else {
                connection.req_packed_command(command)?
            };
            // In a batch an error is a value.
            let error = match answer.extract_error() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let Some((node, _)) = error.redirect_node() else { return Err(error) };
            node.clone_into(&mut to);
            asking = is_ask(&error);
            if !asking {
                self.owners[usize::from(slot)].clone_from(&to);
            }
        }
        Err(RedisError::from((redis::ErrorKind::Client, "sent around in circles")))
    }

    fn connection(&mut self, node: &str) -> RedisResult<&mut Connection> {
        if !self.connections.contains_key(node) {
            self.connections.insert(node.to_owned(), connect(node)?);
        }
        let gone = || RedisError::from((redis::ErrorKind::Io, "no connection"));
        self.connections.get_mut(node).ok_or_else(gone)
    }
}

fn is_ask(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(ServerErrorKind::Ask)
}

fn connect(node: &str) -> RedisResult<Connection> {
    let connection = redis::Client::open(format!("redis://{node}/"))?.get_connection()?;
    connection.set_read_timeout(Some(ANSWER))?;
    Ok(connection)
}
