-- What a plan was expected to take and move when it was made, as domain::moving::Estimate.
ALTER TABLE plans ADD COLUMN estimate jsonb NOT NULL DEFAULT '{}';
