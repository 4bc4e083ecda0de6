package redisregistry

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// schemaVersion is the version of the keys. It grows when one of before could not
// be read any more, or would be misread; more fields and keys are no new version.
const schemaVersion = "1"

// checkSchema looks once, and again after Redis has lost data, whether the keys are
// of a version that is known here; where there is none yet it is written.
func (r *Registry) checkSchema(ctx context.Context) error {
	if r.schemaKnown.Load() {
		return nil
	}
	key := r.keys.schema()
	found, err := r.c.SetArgs(ctx, key, schemaVersion, redis.SetArgs{Mode: "NX", Get: true}).Result()
	switch {
	case errors.Is(err, redis.Nil): // written
	case err != nil:
		return fmt.Errorf("read %s: %w", key, err)
	case found != schemaVersion:
		return fmt.Errorf("%w: %s in redis is %.20q, and this iottunnel knows version %s: run a version that knows it, or choose another redis or key_prefix",
			registry.ErrSchema, key, found, schemaVersion)
	}
	r.schemaKnown.Store(true)
	return nil
}
