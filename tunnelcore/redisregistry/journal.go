package redisregistry

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

func (k keys) journal(device string) string { return k.prefix + "journal:{" + device + "}" }

// Journal implements registry.Journals.
func (r *Registry) Journal(ctx context.Context, device string) (registry.Journal, error) {
	if err := ctx.Err(); err != nil || !matchable(device) {
		return registry.Journal{}, err
	}
	return call(ctx, r, "read journal", func(ctx context.Context) (registry.Journal, error) {
		b := r.batch(ctx)
		now := b.pipe.Time(ctx)
		read := b.pipe.HMGet(ctx, r.keys.journal(device), "tags", "hours", "events")
		if err := b.run(); err != nil {
			return registry.Journal{}, err
		}
		p := reply{list: read.Val()}
		j := decodeJournal(&p, now.Val())
		for line := range strings.SplitSeq(p.text(2), "\n") {
			if e, ok := decodeEvent(device, line); ok {
				j.Events = append(j.Events, e)
			}
		}
		return j, p.err
	})
}

// Journals implements registry.Journals.
func (r *Registry) Journals(ctx context.Context, devices []string) ([]registry.Journal, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return call(ctx, r, "read journals", func(ctx context.Context) ([]registry.Journal, error) {
		b := r.batch(ctx)
		now := b.pipe.Time(ctx)
		read := make([]*redis.SliceCmd, len(devices))
		for i, device := range devices {
			read[i] = b.pipe.HMGet(ctx, r.keys.journal(device), "tags", "hours")
		}
		if err := b.run(); err != nil {
			return nil, err
		}
		list := make([]registry.Journal, len(devices))
		for i := range devices {
			p := reply{list: read[i].Val()}
			list[i] = decodeJournal(&p, now.Val())
			if p.err != nil {
				return nil, p.err
			}
		}
		return list, nil
	})
}

// journalHours is how many hours of the clock registry.Journal.Connects counts.
const journalHours = 24

// decodeJournal reads the fields tags and hours.
func decodeJournal(p *reply, now time.Time) registry.Journal {
	var j registry.Journal
	if tags := p.text(0); tags != "" {
		j.Tags = strings.Split(tags, ",")
	}
	for entry := range strings.SplitSeq(p.text(1), ",") {
		hour, n, _ := strings.Cut(entry, "=")
		h, err := strconv.ParseInt(hour, 10, 64)
		connects, err2 := strconv.Atoi(n)
		if err == nil && err2 == nil && h > now.Unix()/int64(time.Hour/time.Second)-journalHours {
			j.Connects += connects
		}
	}
	return j
}

// decodeEvent reads a line of the field events.
func decodeEvent(device, line string) (registry.Event, bool) {
	parts := strings.SplitN(line, "\t", 4)
	if len(parts) < 4 {
		return registry.Event{}, false
	}
	ms, err := strconv.ParseInt(parts[0], 10, 64)
	return registry.Event{Device: device, At: time.UnixMilli(ms), Kind: parts[1], Node: parts[2], Detail: parts[3]}, err == nil
}

// SetTags implements registry.Journals.
func (r *Registry) SetTags(ctx context.Context, device string, tags []string) error {
	if err := firstError(ctx.Err(), checkName("device", device), registry.CheckTags(tags)); err != nil {
		return err
	}
	_, err := call(ctx, r, "set tags", func(ctx context.Context) (struct{}, error) {
		p := r.run(ctx, setTagsScript, []string{r.keys.journal(device)}, strings.Join(tags, ","), registry.EventTime.Milliseconds())
		return struct{}{}, p.err
	})
	return err
}

// Note implements registry.Journals.
func (r *Registry) Note(ctx context.Context, events []registry.Event) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	events, err := registry.CleanEvents(events)
	if err != nil || len(events) == 0 {
		return err
	}
	op := newToken()
	_, err = crowd(ctx, r, "note", func(ctx context.Context) (struct{}, error) {
		b := r.batch(ctx)
		calls := make([]*scriptCall, len(events))
		for i, e := range events {
			connects := 0
			if e.Kind == registry.EventOnline {
				connects = 1
			}
			calls[i] = b.script(noteScript, []string{r.keys.journal(e.Device)}, e.Kind+"\t"+e.Node+"\t"+e.Detail, connects,
				registry.MaxEvents, registry.EventTime.Milliseconds(), op, i)
		}
		if err := b.run(); err != nil {
			return struct{}{}, err
		}
		for _, c := range calls {
			if p := c.reply(); p.err != nil {
				return struct{}{}, p.err
			}
		}
		return struct{}{}, nil
	})
	return err
}

// DropJournal implements registry.Journals.
func (r *Registry) DropJournal(ctx context.Context, device string) error {
	_, err := call(ctx, r, "drop journal", func(ctx context.Context) (struct{}, error) {
		return struct{}{}, r.c.Del(ctx, r.keys.journal(device)).Err()
	})
	return err
}
