package redisregistry

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

func (k keys) credential(device string) string { return k.prefix + "cred:{" + device + "}" }
func (k keys) enrolled() string                { return k.prefix + "enrolled" }
func (k keys) revoked() string                 { return k.prefix + "revoked" }
func (k keys) codes() string                   { return k.prefix + "{codes}" }
func (k keys) codeFields() string              { return k.prefix + "{codes}:code" }
func (k keys) codeOp(op string) string         { return k.prefix + "{codes}:op:" + op }

// opTime is how long the outcome of taking a code is kept, should the call be
// repeated.
const opTime = 10 * time.Second

// Credential implements registry.Credentials.
func (r *Registry) Credential(ctx context.Context, device string) (registry.Credential, error) {
	if err := ctx.Err(); err != nil {
		return registry.Credential{}, err
	}
	if !matchable(device) {
		return registry.Credential{}, registry.ErrUnknown
	}
	return call(ctx, r, "read credential", func(ctx context.Context) (registry.Credential, error) {
		list, err := r.credentials(ctx, []string{device})
		if err != nil {
			return registry.Credential{}, err
		}
		if list[0].Version == 0 {
			return registry.Credential{}, registry.ErrUnknown
		}
		return list[0], nil
	})
}

// credentials reads those of devices, in their order; without a record the version
// is 0.
func (r *Registry) credentials(ctx context.Context, devices []string) ([]registry.Credential, error) {
	b := r.batch(ctx)
	read := make([]*redis.SliceCmd, len(devices))
	for i, device := range devices {
		read[i] = b.pipe.HMGet(ctx, r.keys.credential(device), "current", "next", "version", "changed_ms")
	}
	if err := b.run(); err != nil {
		return nil, err
	}
	list := make([]registry.Credential, len(devices))
	for i, device := range devices {
		p := reply{list: read[i].Val()}
		current, err := registry.ParseSecretHash(p.text(0))
		next, err2 := registry.ParseSecretHash(p.text(1))
		list[i] = registry.Credential{Device: device, Current: current, Next: next, Version: p.number(2), Changed: time.UnixMilli(p.number(3))}
		if err := firstError(p.err, err, err2); err != nil {
			return nil, fmt.Errorf("credential of %s: %w", device, err)
		}
	}
	return list, nil
}

// SetCredential implements registry.Credentials.
func (r *Registry) SetCredential(ctx context.Context, c registry.Credential) (registry.Credential, error) {
	if err := ctx.Err(); err != nil {
		return registry.Credential{}, err
	}
	if err := registry.CheckCredential(c); err != nil {
		return registry.Credential{}, err
	}
	return call(ctx, r, "write credential", func(ctx context.Context) (registry.Credential, error) {
		// The list first: what is in it without a record is passed over.
		if err := r.c.ZAdd(ctx, r.keys.enrolled(), redis.Z{Member: c.Device}).Err(); err != nil {
			return registry.Credential{}, err
		}
		p := r.run(ctx, setCredScript, []string{r.keys.credential(c.Device)}, c.Version, c.Current.String(), c.Next.String(), newToken())
		if p.number(0) == 0 {
			return registry.Credential{}, firstError(p.err, registry.ErrChanged)
		}
		c.Version, c.Changed = p.number(1), time.UnixMilli(p.number(2))
		return c, p.err
	})
}

// DropCredential implements registry.Credentials.
func (r *Registry) DropCredential(ctx context.Context, device string) error {
	_, err := call(ctx, r, "drop credential", func(ctx context.Context) (struct{}, error) {
		if err := r.c.Del(ctx, r.keys.credential(device)).Err(); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, r.unlist(ctx, []string{device})
	})
	return err
}

// unlist takes devices out of the list of those enrolled, unless they are again.
func (r *Registry) unlist(ctx context.Context, devices []string) error {
	members := make([]any, len(devices))
	for i, device := range devices {
		members[i] = device
	}
	if err := r.c.ZRem(ctx, r.keys.enrolled(), members...).Err(); err != nil {
		return err
	}
	again, err := r.credentials(ctx, devices)
	if err != nil {
		return err
	}
	var back []redis.Z
	for _, c := range again {
		if c.Version != 0 {
			back = append(back, redis.Z{Member: c.Device})
		}
	}
	if len(back) == 0 {
		return nil
	}
	return r.c.ZAdd(ctx, r.keys.enrolled(), back...).Err()
}

// Enrolled implements registry.Credentials.
func (r *Registry) Enrolled(ctx context.Context, after string, limit int) ([]registry.Credential, error) {
	return call(ctx, r, "list credentials", func(ctx context.Context) ([]registry.Credential, error) {
		var page []registry.Credential
		for limit > len(page) {
			n := min(limit-len(page), batchSize)
			ids, err := r.page(ctx, r.keys.enrolled(), after, n)
			if err != nil {
				return nil, err
			}
			list, err := r.credentials(ctx, ids)
			if err != nil {
				return nil, err
			}
			for _, c := range list {
				if c.Version != 0 { // else it is being enrolled, or that has failed
					page = append(page, c)
				}
			}
			if len(ids) < n {
				break
			}
			after = ids[n-1]
		}
		return page, nil
	})
}

// AddCode implements registry.Credentials.
func (r *Registry) AddCode(ctx context.Context, c registry.Code) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	now := r.now() // what the caller went by
	if err := registry.CheckCode(c, now); err != nil {
		return err
	}
	_, err := call(ctx, r, "add code", func(ctx context.Context) (struct{}, error) {
		p := r.run(ctx, addCodeScript, []string{r.keys.codes(), r.keys.codeFields()},
			c.ID, c.Hash.String(), c.Device, millis(c.Until.Sub(now)), registry.MaxCodes, newToken())
		switch done := p.number(0); {
		case p.err != nil:
			return struct{}{}, p.err
		case done == 0:
			return struct{}{}, fmt.Errorf("%w: code %s is there already", registry.ErrInvalid, c.ID)
		case done < 0:
			return struct{}{}, registry.ErrTooManyCodes
		}
		return struct{}{}, nil
	})
	return err
}

// TakeCode implements registry.Credentials.
func (r *Registry) TakeCode(ctx context.Context, id string, hash registry.SecretHash, device string, known bool) error {
	if hash == (registry.SecretHash{}) {
		return firstError(ctx.Err(), registry.ErrUnknown)
	}
	others := "any"
	if known {
		others = "own"
	}
	return r.takeCode(ctx, "take code", id, hash.String(), device, others)
}

// DropCode implements registry.Credentials.
func (r *Registry) DropCode(ctx context.Context, id string) error {
	return r.takeCode(ctx, "drop code", id, "", "", "")
}

func (r *Registry) takeCode(ctx context.Context, what, id, hash, device, which string) error {
	_, err := call(ctx, r, what, func(ctx context.Context) (struct{}, error) {
		p := r.run(ctx, takeCodeScript, []string{r.keys.codes(), r.keys.codeFields(), r.keys.codeOp(newToken())},
			id, hash, device, opTime.Milliseconds(), which)
		if p.number(0) == 0 {
			return struct{}{}, firstError(p.err, registry.ErrUnknown)
		}
		return struct{}{}, nil
	})
	return err
}

// Codes implements registry.Credentials.
func (r *Registry) Codes(ctx context.Context) ([]registry.Code, error) {
	return call(ctx, r, "list codes", func(ctx context.Context) ([]registry.Code, error) {
		p := r.run(ctx, codesScript, []string{r.keys.codes(), r.keys.codeFields()})
		codes := make([]registry.Code, 0, len(p.list)/3)
		for i := 0; i < len(p.list); i += 3 {
			fields := strings.Fields(p.text(i + 2))
			if len(fields) < 3 {
				return nil, fmt.Errorf("%w: code %q", errReply, p.text(i))
			}
			hash, err := registry.ParseSecretHash(fields[0])
			created, err2 := strconv.ParseInt(fields[2], 10, 64)
			if err := firstError(p.err, err, err2); err != nil {
				return nil, err
			}
			c := registry.Code{ID: p.text(i), Hash: hash, Created: time.UnixMilli(created), Until: time.UnixMilli(p.number(i + 1))}
			if fields[1] != "-" {
				c.Device = fields[1]
			}
			codes = append(codes, c)
		}
		registry.SortCodes(codes)
		return codes, p.err
	})
}

// Notify implements registry.Credentials.
func (r *Registry) Notify(ctx context.Context, device string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := checkName("device", device); err != nil {
		return err
	}
	_, err := crowd(ctx, r, "notify", func(ctx context.Context) (struct{}, error) {
		p := r.run(ctx, notifyScript, []string{r.keys.revoked()}, device, registry.NoticeTime.Milliseconds())
		return struct{}{}, p.err
	})
	return err
}

// Notices implements registry.Credentials.
func (r *Registry) Notices(ctx context.Context, after int64) ([]registry.Notice, error) {
	return call(ctx, r, "read notices", func(ctx context.Context) ([]registry.Notice, error) {
		list, err := r.c.ZRangeArgsWithScores(ctx, redis.ZRangeArgs{
			Key: r.keys.revoked(), Start: "(" + strconv.FormatInt(after, 10), Stop: "+inf",
			ByScore: true, Count: registry.NoticePage,
		}).Result()
		if err != nil {
			return nil, err
		}
		var notices []registry.Notice
		for _, z := range list {
			device, _ := z.Member.(string)
			notices = append(notices, registry.Notice{Device: device, Mark: int64(z.Score)})
		}
		return notices, nil
	})
}

// Drop implements registry.Registry.
func (r *Registry) Drop(ctx context.Context, device string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !matchable(device) {
		return registry.ErrUnknown
	}
	_, err := call(ctx, r, "drop", func(ctx context.Context) (struct{}, error) {
		for range tries {
			records, _, err := r.readAll(ctx, []string{device})
			if err != nil {
				return struct{}{}, err
			}
			rec := records[0]
			if rec.label == "" {
				return struct{}{}, registry.ErrUnknown
			}
			// Without a tunnel it is the lease of the last one that ends.
			h := registry.Holder{Device: device, Generation: rec.generation, Tunnel: rec.tunnel.Tunnel}
			switch err := r.release(ctx, h, 0, "dropped"); {
			case err == nil:
				return struct{}{}, nil
			case !errors.Is(err, registry.ErrLost):
				return struct{}{}, err
			}
		}
		return struct{}{}, errBusy
	})
	return err
}
