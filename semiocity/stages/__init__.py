"""Stages: functions from some columns of one shard to one new column of that shard. See README.md to add one."""
