package redisregistry

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// The scripts: what each takes and replies stands on its top.
var (
	//go:embed scripts/claim.lua
	claimText   string
	claimScript = redis.NewScript(claimText)

	//go:embed scripts/unpend.lua
	unpendText   string
	unpendScript = redis.NewScript(unpendText)

	//go:embed scripts/check.lua
	checkText   string
	checkScript = redis.NewScript(checkText)

	//go:embed scripts/hold.lua
	holdText   string
	holdScript = redis.NewScript(holdText)

	//go:embed scripts/publish.lua
	publishText   string
	publishScript = redis.NewScript(publishText)

	//go:embed scripts/unpublish.lua
	unpublishText   string
	unpublishScript = redis.NewScript(unpublishText)

	//go:embed scripts/read.lua
	readText   string
	readScript = redis.NewScript(readText)

	//go:embed scripts/refresh.lua
	refreshText   string
	refreshScript = redis.NewScript(refreshText)

	//go:embed scripts/release.lua
	releaseText   string
	releaseScript = redis.NewScript(releaseText)

	//go:embed scripts/restore.lua
	restoreText   string
	restoreScript = redis.NewScript(restoreText)

	//go:embed scripts/changed.lua
	changedText string // stands before those that lease ports and give them back

	//go:embed scripts/allocate.lua
	allocateText   string
	allocateScript = redis.NewScript(changedText + allocateText)

	//go:embed scripts/setports.lua
	setPortsText   string
	setPortsScript = redis.NewScript(setPortsText)

	//go:embed scripts/leasedports.lua
	leasedPortsText   string
	leasedPortsScript = redis.NewScript(leasedPortsText)

	//go:embed scripts/keepports.lua
	keepPortsText   string
	keepPortsScript = redis.NewScript(changedText + keepPortsText)

	//go:embed scripts/leaveports.lua
	leavePortsText   string
	leavePortsScript = redis.NewScript(changedText + leavePortsText)

	//go:embed scripts/undoports.lua
	undoPortsText   string
	undoPortsScript = redis.NewScript(changedText + undoPortsText)

	//go:embed scripts/beat.lua
	beatText   string
	beatScript = redis.NewScript(beatText)

	//go:embed scripts/enlist.lua
	enlistText   string
	enlistScript = redis.NewScript(enlistText)

	//go:embed scripts/leave.lua
	leaveText   string
	leaveScript = redis.NewScript(leaveText)

	//go:embed scripts/setcred.lua
	setCredText   string
	setCredScript = redis.NewScript(setCredText)

	//go:embed scripts/addcode.lua
	addCodeText   string
	addCodeScript = redis.NewScript(addCodeText)

	//go:embed scripts/takecode.lua
	takeCodeText   string
	takeCodeScript = redis.NewScript(takeCodeText)

	//go:embed scripts/codes.lua
	codesText   string
	codesScript = redis.NewScript(codesText)

	//go:embed scripts/notify.lua
	notifyText   string
	notifyScript = redis.NewScript(notifyText)

	//go:embed scripts/note.lua
	noteText   string
	noteScript = redis.NewScript(noteText)

	//go:embed scripts/settags.lua
	setTagsText   string
	setTagsScript = redis.NewScript(setTagsText)
)

// A batch is commands that go out together. In a cluster they reach their nodes
// at the same time, in no order; otherwise one after the other.
type batch struct {
	r       *Registry
	ctx     context.Context
	pipe    redis.Pipeliner
	scripts []*scriptCall
}

// scriptCall is a script in a batch; its outcome is there after the batch has run.
type scriptCall struct {
	script *redis.Script
	keys   []string
	args   []any
	cmd    *redis.Cmd
}

func (c *scriptCall) reply() reply { return replyOf(c.cmd) }

func (r *Registry) batch(ctx context.Context) *batch {
	return &batch{r: r, ctx: ctx, pipe: r.c.Pipeline()}
}

func (b *batch) script(s *redis.Script, keys []string, args ...any) *scriptCall {
	c := &scriptCall{script: s, keys: keys, args: args}
	c.cmd = s.EvalSha(b.ctx, b.pipe, keys, args...)
	b.scripts = append(b.scripts, c)
	return c
}

// run sends the batch. Scripts that a server does not know yet are sent in full,
// after the rest.
func (b *batch) run() error {
	if b.pipe.Len() == 0 {
		return nil
	}
	cmds, err := b.pipe.Exec(b.ctx)
	if err == nil {
		return nil
	}
	unknown := b.r.c.Pipeline()
	for _, c := range b.scripts {
		if redis.HasErrorPrefix(c.cmd.Err(), "NOSCRIPT") {
			c.cmd = c.script.Eval(b.ctx, unknown, c.keys, c.args...)
		}
	}
	var errs []error
	if unknown.Len() > 0 {
		if _, err := unknown.Exec(b.ctx); err != nil {
			errs = append(errs, err)
		}
	}
	sent := false
	for _, cmd := range cmds {
		err := cmd.Err()
		sent = sent || err != nil
		if err != nil && !errors.Is(err, redis.Nil) && !redis.HasErrorPrefix(err, "NOSCRIPT") {
			return err // the first says enough
		}
	}
	if !sent {
		return err // no command knows of it: Redis has refused the connection
	}
	return errors.Join(errs...)
}

// run runs one script on one slot.
func (r *Registry) run(ctx context.Context, s *redis.Script, keys []string, args ...any) reply {
	return replyOf(s.Run(ctx, r.c, keys, args...))
}

// A reply is what a script returned: a list, of which one value alone is the
// first. Reading past its end, or a value of another kind, makes it an error.
type reply struct {
	list []any
	err  error
}

func replyOf(cmd *redis.Cmd) reply {
	v, err := cmd.Result()
	if err != nil {
		return reply{err: err}
	}
	if list, ok := v.([]any); ok {
		return reply{list: list}
	}
	return reply{list: []any{v}}
}

var errReply = errors.New("unexpected reply: is another version of iottunnel using the same keys?")

func (p *reply) at(i int) any {
	if p.err == nil && i >= len(p.list) {
		p.err = fmt.Errorf("%w: %d values, want more than %d", errReply, len(p.list), i)
	}
	if p.err != nil {
		return nil
	}
	return p.list[i]
}

// text returns a value as text; nil is empty.
func (p *reply) text(i int) string {
	switch v := p.at(i).(type) {
	case nil:
		return ""
	case string:
		return v
	case int64:
		return strconv.FormatInt(v, 10)
	default:
		p.err = fmt.Errorf("%w: %T, want text", errReply, v)
		return ""
	}
}

// number returns a value as a number; nil and the empty text are 0.
func (p *reply) number(i int) int64 {
	text := p.text(i)
	if text == "" {
		return 0
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil && p.err == nil {
		p.err = fmt.Errorf("%w: %q, want a number", errReply, strings.ToValidUTF8(text, "?"))
	}
	return n
}

// sub returns a value that is a list.
func (p *reply) sub(i int) reply {
	list, ok := p.at(i).([]any)
	if !ok && p.err == nil {
		p.err = fmt.Errorf("%w: %T, want a list", errReply, p.list[i])
	}
	return reply{list: list, err: p.err}
}
