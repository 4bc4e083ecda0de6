package redisregistry

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// The scripts of grants: what each takes and replies stands on its top.
var (
	//go:embed scripts/listgrant.lua
	listGrantText   string
	listGrantScript = redis.NewScript(listGrantText)

	//go:embed scripts/addgrant.lua
	addGrantText   string
	addGrantScript = redis.NewScript(addGrantText)
)

func (k keys) grant(id string) string { return k.prefix + "grant:{" + id + "}" }
func (k keys) grants() string         { return k.prefix + "grants" }

// AddGrant implements registry.Grants.
func (r *Registry) AddGrant(ctx context.Context, g registry.Grant) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	now := r.now() // what the caller went by
	if err := registry.CheckGrant(g, now); err != nil {
		return err
	}
	ttl, op := millis(g.Until.Sub(now)), newToken()
	_, err := call(ctx, r, "add grant", func(ctx context.Context) (struct{}, error) {
		// The list first: what is in it without a record is passed over.
		p := r.run(ctx, listGrantScript, []string{r.keys.grants()}, g.ID, ttl, registry.MaxGrants)
		if p.number(0) < 0 {
			return struct{}{}, registry.ErrTooManyGrants
		}
		if p.err != nil {
			return struct{}{}, p.err
		}
		p = r.run(ctx, addGrantScript, []string{r.keys.grant(g.ID)},
			string(g.Kind), g.Device, strconv.Itoa(int(g.Port)), g.By, g.Hash.String(), ttl, op)
		if p.number(0) == 0 {
			return struct{}{}, firstError(p.err, fmt.Errorf("%w: grant %s is there already", registry.ErrInvalid, g.ID))
		}
		return struct{}{}, p.err
	})
	return err
}

// FindGrants implements registry.Grants.
func (r *Registry) FindGrants(ctx context.Context, ids []string) ([]registry.Grant, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return call(ctx, r, "find grants", func(ctx context.Context) ([]registry.Grant, error) {
		return r.readGrants(ctx, ids)
	})
}

func (r *Registry) readGrants(ctx context.Context, ids []string) ([]registry.Grant, error) {
	list := make([]registry.Grant, len(ids))
	b := r.batch(ctx)
	read := make([]*redis.SliceCmd, len(ids))
	for i, id := range ids {
		if matchable(id) {
			read[i] = b.pipe.HMGet(ctx, r.keys.grant(id), "kind", "device", "port", "by", "hash", "created_ms", "until_ms")
		}
	}
	if err := b.run(); err != nil {
		return nil, err
	}
	for i, id := range ids {
		if read[i] == nil {
			continue
		}
		g, err := decodeGrant(id, reply{list: read[i].Val()})
		if err != nil {
			return nil, fmt.Errorf("grant %s: %w", id, err)
		}
		list[i] = g
	}
	return list, nil
}

// decodeGrant reads the fields of a grant; the zero Grant if there is none.
func decodeGrant(id string, p reply) (registry.Grant, error) {
	g := registry.Grant{
		ID: id, Kind: registry.GrantKind(p.text(0)), Device: p.text(1), By: p.text(3),
		Created: time.UnixMilli(p.number(5)), Until: time.UnixMilli(p.number(6)),
	}
	port := p.number(2)
	hash, err := registry.ParseSecretHash(p.text(4))
	if err := firstError(p.err, err); err != nil {
		return registry.Grant{}, err
	}
	if g.Kind == "" && hash == (registry.SecretHash{}) {
		return registry.Grant{}, nil
	}
	if port < 1 || port > math.MaxUint16 || hash == (registry.SecretHash{}) {
		return registry.Grant{}, fmt.Errorf("%w: port or hash", errReply)
	}
	g.Port, g.Hash = uint16(port), hash
	return g, nil
}

// DropGrant implements registry.Grants.
func (r *Registry) DropGrant(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !matchable(id) {
		return registry.ErrUnknown
	}
	_, err := call(ctx, r, "drop grant", func(ctx context.Context) (struct{}, error) {
		b := r.batch(ctx)
		now, until := b.pipe.Time(ctx), b.pipe.ZScore(ctx, r.keys.grants(), id)
		gone := b.pipe.Del(ctx, r.keys.grant(id))
		if err := b.run(); err != nil && !errors.Is(err, redis.Nil) {
			return struct{}{}, err
		}
		// An earlier try of this call may have deleted it; the list is last.
		if gone.Val() == 0 && until.Val() <= float64(now.Val().UnixMilli()) {
			return struct{}{}, registry.ErrUnknown
		}
		return struct{}{}, r.c.ZRem(ctx, r.keys.grants(), id).Err()
	})
	return err
}

// Grants implements registry.Grants.
func (r *Registry) Grants(ctx context.Context, after string, limit int) ([]registry.Grant, error) {
	return call(ctx, r, "list grants", func(ctx context.Context) ([]registry.Grant, error) {
		// All ids: there are at most MaxGrants, and those that have expired.
		ids, err := r.c.ZRangeArgs(ctx, redis.ZRangeArgs{Key: r.keys.grants(), Start: 0, Stop: -1}).Result()
		if err != nil {
			return nil, err
		}
		var page []registry.Grant
		for limit > len(page) {
			n := min(limit-len(page), batchSize)
			some := registry.PageGrants(ids, after, n)
			list, err := r.readGrants(ctx, some)
			if err != nil {
				return nil, err
			}
			for _, g := range list {
				if g.ID != "" { // else it has expired, or is being added
					page = append(page, g)
				}
			}
			if len(some) < n {
				break
			}
			after = some[n-1]
		}
		return page, nil
	})
}
