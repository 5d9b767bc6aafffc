//! Servers that are not there yet when a host starts, or go away under it.

use crate::world::on_stages;

on_stages! {
    a_host_started_before_its_broker_says_so_and_waits: [Postgres];
    a_host_started_before_its_database_says_so_and_waits: [MariaDb, Postgres];
    a_module_that_is_missing_stops_no_other_consumer: [MariaDb, Postgres, Embedded];
    a_broker_that_is_killed_loses_and_doubles_nothing: [Postgres];
}

mod scenarios {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use hapax_tests::TestResult;
    use hapax_tests::servers::Rabbit;
    use serde_json::json;

    use crate::own_database::Server;
    use crate::world::{Arrived, Consumer, DEAD_QUEUE, PATIENCE, Stage, World, effect, guest};

    /// A host whose server takes a while to come back tries again with growing pauses.
    const RETURN: Duration = Duration::from_secs(120);

    async fn works(world: &World) -> TestResult {
        world.publish((0..20).map(|n| effect(&format!("m{n}"), &[]))).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 20).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE value = '1'").await?, 20);
        Ok(())
    }

    pub(super) async fn a_host_started_before_its_broker_says_so_and_waits(world: World) -> TestResult {
        let Some(mut rabbit) = Rabbit::private().await? else { return Ok(()) };
        let world = world.on_broker(rabbit.vhost("later").await?).await?;
        rabbit.stop().await?;
        let mut host = world.start(Consumer::default())?;
        host.wait_for_log(PATIENCE, "waiting for queue \"work\": amqp://").await?;
        assert!(host.log().contains("connection refused"), "it says what is in the way");
        assert!(!host.log().contains("guest:guest"), "an address is shown without its password");
        rabbit.restart().await?;
        host.wait_consuming(RETURN).await?;
        works(&world).await
    }

    pub(super) async fn a_host_started_before_its_database_says_so_and_waits(shared: World) -> TestResult {
        let Some((mut server, world)) = Server::start(shared.stage).await? else { return Ok(()) };
        server.stop().await?;
        let mut host = world.start(Consumer::default())?;
        host.wait_for_log(PATIENCE, "waiting for the database at").await?;
        server.restart().await?;
        host.wait_consuming(RETURN).await?;
        works(&world).await
    }

    pub(super) async fn a_module_that_is_missing_stops_no_other_consumer(world: World) -> TestResult {
        let missing = world.path("later.wasm");
        let (queue, declare) = match world.stage {
            Stage::Embedded => ("other", "create"),
            _ => (DEAD_QUEUE, "passive"),
        };
        let other = format!(
            "[consumers.later]\nqueue = {queue:?}\ndeclare = {declare:?}\nmodule = {:?}\n\
             grants = {{ tables = {{ effects = [\"insert\"] }} }}\n",
            missing.display().to_string()
        );
        let mut host = world.host(Consumer::default().more(other)).await?;
        host.wait_for_log(PATIENCE, &format!("waiting for module {}", missing.display())).await?;
        works(&world).await?;
        std::fs::copy(guest("chaos")?, world.path("later.new"))?;
        std::fs::rename(world.path("later.new"), &missing)?;
        host.wait_for_log(PATIENCE, &format!("queue={queue}")).await?;
        let mut later = effect("later", &[]);
        queue.clone_into(&mut later.routing_key);
        world.publish([later]).await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'later' AND value = '1'", 1).await?;
        Ok(())
    }

    pub(super) async fn a_broker_that_is_killed_loses_and_doubles_nothing(world: World) -> TestResult {
        let Some(mut rabbit) = Rabbit::private().await? else { return Ok(()) };
        let world = world.on_broker(rabbit.vhost("killed").await?).await?;
        let _host = world.host(Consumer::default()).await?;
        rabbit.write_declarations().await?;
        let orders: i64 = 1000;
        let tell = |n: i64| json!({ "publish": { "routing_key": DEAD_QUEUE, "body": format!("m{n}") } });
        world.publish((0..orders).map(|n| effect(&format!("m{n}"), &[json!({ "sleep-ms": 2 }), tell(n)]))).await?;
        for part in 1..=2 {
            let reached = format!("SELECT CASE WHEN COUNT(*) >= {} THEN 1 ELSE 0 END FROM effects", orders * part / 4);
            world.wait_number(&reached, 1).await?;
            rabbit.kill9().await?;
            let left = orders - world.number("SELECT COUNT(*) FROM effects").await?;
            assert!(left > 0, "it was killed under load");
            rabbit.restart().await?;
        }
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", orders).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, orders);
        assert_eq!(world.number("SELECT COUNT(DISTINCT name) FROM effects").await?, orders);
        assert_eq!(
            world.number("SELECT COUNT(*) FROM effects WHERE value = '1'").await?,
            orders,
            "a lost broker is no attempt"
        );
        let told = |arrived: &[Arrived]| arrived.iter().map(|copy| copy.id.clone()).collect::<BTreeSet<_>>();
        let orders = usize::try_from(orders)?;
        let bodies = |arrived: &[Arrived]| arrived.iter().map(|copy| copy.body.clone()).collect::<BTreeSet<_>>();
        let copies = world.collect(DEAD_QUEUE, |arrived| bodies(arrived).len() >= orders).await?;
        assert_eq!(told(&copies).len(), orders, "each told at least once, and under one id");
        Ok(())
    }
}
