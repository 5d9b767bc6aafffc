//! broker/amqp.
