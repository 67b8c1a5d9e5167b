//! An independent client that measures when a shard takes writes: it writes to each of its members
//! all the time, each on a connection of its own, and keeps when that succeeded.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reeve::domain::slot::key_slot;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const PACE: Duration = Duration::from_millis(4);
const PATIENCE: Duration = Duration::from_millis(60);

pub struct Seconds {
    taken: Arc<Mutex<Vec<Instant>>>,
    writers: Vec<JoinHandle<()>>,
}

impl Seconds {
    /// Begins to write a key of this slot to the nodes at these ports.
    pub fn watch(slot: u16, ports: &[u16]) -> Self {
        let key = (0..).map(|n| format!("second-{n}")).find(|k| key_slot(k.as_bytes()) == slot);
        let (key, taken) = (key.unwrap(), Arc::<Mutex<Vec<Instant>>>::default());
        let writer = |port: &u16| tokio::spawn(write(*port, key.clone(), taken.clone()));
        let writers = ports.iter().map(writer).collect();
        Self { taken, writers }
    }

    /// The longest time without a write, from when it began: its length, and the write that ended it.
    pub fn longest_gap(&self) -> (Duration, Instant) {
        let mut taken = self.taken.lock().unwrap().clone();
        taken.sort();
        let gaps = taken.windows(2).map(|pair| (pair[1] - pair[0], pair[1]));
        gaps.max().unwrap()
    }

    /// Waits until a write succeeds after this one.
    pub async fn taken_after(&self, at: Instant, within: Duration) {
        let began = Instant::now();
        while self.taken.lock().unwrap().iter().all(|taken| *taken <= at) {
            assert!(began.elapsed() < within, "no write for {within:?}");
            sleep(PACE).await;
        }
    }
}

impl Drop for Seconds {
    fn drop(&mut self) {
        self.writers.iter().for_each(JoinHandle::abort);
    }
}

async fn write(port: u16, key: String, taken: Arc<Mutex<Vec<Instant>>>) {
    loop {
        // Whatever goes wrong, it begins anew.
        if let Ok(Ok(mut socket)) = timeout(PATIENCE, TcpStream::connect(("127.0.0.1", port))).await
        {
            let _ = socket.set_nodelay(true);
            let mut answer = [0; 256];
            loop {
                let exchange = async {
                    socket.write_all(format!("SET {key} 1\r\n").as_bytes()).await?;
                    socket.read(&mut answer).await
                };
                match timeout(PATIENCE, exchange).await {
                    Ok(Ok(read)) if read > 0 => {
                        if answer.starts_with(b"+OK") {
                            taken.lock().unwrap().push(Instant::now());
                        }
                    }
                    Ok(_) | Err(_) => break,
                }
                sleep(PACE).await;
            }
        }
        sleep(PACE).await;
    }
}
