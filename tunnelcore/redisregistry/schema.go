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

// newTime is how long after the version was written nothing new is leased: Redis may
// not be new but empty, and other nodes find that out with a heartbeat.
const newTime = 2 * registry.NodeHeartbeat

// checkSchema looks once, and again after Redis has lost data, whether the keys are
// of a version that is known here; where there is none yet it is written.
func (r *Registry) checkSchema(ctx context.Context) error {
	if r.schemaKnown.Load() {
		return nil
	}
	key := r.keys.schema()
	found, err := r.c.Get(ctx, key).Result()
	if errors.Is(err, redis.Nil) {
		// First this, so that nobody finds the version without it.
		if err := r.c.Set(ctx, r.keys.fresh(), "", r.newTime).Err(); err != nil {
			return fmt.Errorf("write %s: %w", r.keys.fresh(), err)
		}
		found, err = r.c.SetArgs(ctx, key, schemaVersion, redis.SetArgs{Mode: "NX", Get: true}).Result()
	}
	switch {
	case errors.Is(err, redis.Nil): // written
		r.watch.empty(r, r.newTime)
	case err != nil:
		return fmt.Errorf("read %s: %w", key, err)
	case found != schemaVersion:
		return fmt.Errorf("%w: %s in redis is %.20q, and this iottunnel knows version %s: run a version that knows it, or choose another redis or key_prefix",
			registry.ErrSchema, key, found, schemaVersion)
	case !r.watch.acquainted():
		left, err := r.c.PTTL(ctx, r.keys.fresh()).Result()
		if err != nil {
			return fmt.Errorf("read %s: %w", r.keys.fresh(), err)
		}
		if left > 0 {
			r.watch.empty(r, left)
		}
	}
	r.schemaKnown.Store(true)
	return nil
}
