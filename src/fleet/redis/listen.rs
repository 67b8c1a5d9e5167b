//! Hearing what a node publishes, on a connection of its own.

use futures::StreamExt;
use redis::aio::PubSub;
use redis::{RedisConnectionInfo, RedisError};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::connection::{Lost, io_words, unreachable, words};
use super::{Reach, Timeouts};
use crate::fleet::{FleetError, Message, Published, Target};

pub(super) async fn listen(
    target: &Target,
    channels: &[&str],
    reach: &Reach,
    times: &Timeouts,
) -> Result<Published, FleetError> {
    match timeout(times.connect, subscribe(target, channels, reach)).await {
        Ok(subscribed) => subscribed,
        Err(_) => Err(unreachable(target, Lost::Late(times.connect))),
    }
}

async fn subscribe(
    target: &Target,
    channels: &[&str],
    reach: &Reach,
) -> Result<Published, FleetError> {
    let lost = |error| unreachable(target, io_words(error));
    let failed = |error: RedisError| unreachable(target, words(&error));
    let socket = reach.resolve(&target.address, target.address.port()).await.map_err(lost)?;
    let stream = TcpStream::connect(socket).await.map_err(lost)?;
    let mut greeting = RedisConnectionInfo::default().set_skip_set_lib_name();
    if let Some(login) = &target.login {
        greeting = greeting.set_password(login.reveal());
        if let Some(user) = &login.username {
            greeting = greeting.set_username(user);
        }
    }
    let mut pubsub = PubSub::new(&greeting, stream).await.map_err(failed)?;
    pubsub.subscribe(channels).await.map_err(failed)?;
    let message = |heard: redis::Msg| Message {
        channel: heard.get_channel_name().to_owned(),
        text: String::from_utf8_lossy(heard.get_payload_bytes()).into_owned(),
    };
    Ok(pubsub.into_on_message().map(message).boxed())
}
