//! stub
#[derive(Debug, clap::Args)]
pub struct DemoArgs {}
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct DemoError;
pub async fn run(_: DemoArgs) -> Result<(), DemoError> {
    Ok(())
}
