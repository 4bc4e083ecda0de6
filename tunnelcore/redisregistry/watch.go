package redisregistry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// A server is what a Redis master says of itself. Data may have been lost when
// the process is another one than before, when it begins a new history, when
// its history has become shorter, or when it was flushed.
type server struct {
	replication string
	offset      int64
	flushes     int64 // in a cluster: how often it was told to forget all
}

// watch finds out that Redis has lost data: restarted empty or with an old dump,
// flushed, or failed over to a replica that was behind.
type watch struct {
	settle time.Duration
	lost   chan struct{} // a token: somebody should call Restore
	// looking holds a token while a look is under way. They go one by one: what
	// they see is compared with what the one before has seen.
	looking chan struct{}

	mu      sync.Mutex        // guards what follows
	looked  time.Time         // when the last look that succeeded began
	servers map[string]server // by run id; nil until Redis was first seen
	state   string            // identifies servers; equal for all nodes that see the same
	// restored is the state for which everything that is held here is known to be
	// in Redis. Other nodes read it in the node's key.
	restored string
	// pending: data was lost, and Restore has not succeeded since.
	pending   bool
	lostAt    time.Time // when it was last noticed that data was lost
	writtenAt time.Time // when Restore last succeeded
	// Until settled nothing new is leased, unless after earliest the nodes of
	// waiting, and those that live then, all say that they have restored.
	settled  time.Time
	earliest time.Time
	waiting  []string
	peers    []string // nodes that were live at the last heartbeat

	beaten    map[registry.NodeRef]beaten
	beats     int
	sweptUpTo string
	stale     bool // and many have been found there
}

// beaten is the last heartbeat of a node of this process.
type beaten struct {
	node registry.Node
	sent time.Time
}

func newWatch(settle time.Duration) *watch {
	return &watch{
		settle: settle, lost: make(chan struct{}, 1), looking: make(chan struct{}, 1),
		beaten: map[registry.NodeRef]beaten{},
	}
}

// signal asks for Restore.
func (w *watch) signal() {
	select {
	case w.lost <- struct{}{}:
	default: // asked already
	}
}

// restoredTo is what the node's key says of restoring.
func (w *watch) restoredTo() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.restored
}

// internal returns where routers reach a node of this process; empty for others.
func (w *watch) internal(n registry.NodeRef) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.beaten[n].node.Internal
}

// nodes returns the nodes of this process, as they last beat.
func (w *watch) nodes() []registry.Node {
	w.mu.Lock()
	defer w.mu.Unlock()
	var nodes []registry.Node
	for _, last := range w.beaten {
		nodes = append(nodes, last.node)
	}
	return nodes
}

// left forgets a node that has left, or lost its id.
func (w *watch) left(n registry.NodeRef) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.beaten, n)
}

// sweptTo returns up to which device the list was swept, and whether many were found there
// that have no lease.
func (w *watch) sweptTo() (device string, stale bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sweptUpTo, w.stale
}

func (w *watch) swept(to string, stale bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sweptUpTo, w.stale = to, stale
}

// beat notes a heartbeat that was accepted. The node's key was missing: then it
// was silent for too long, or the key was lost. It returns how many there were.
func (w *watch) beat(r *Registry, n registry.Node, sent time.Time, missing bool, live []string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	last, again := w.beaten[n.NodeRef]
	w.beaten[n.NodeRef] = beaten{node: n, sent: sent}
	for ref := range w.beaten {
		if ref.ID == n.ID && ref.Epoch != n.Epoch {
			delete(w.beaten, ref)
		}
	}
	if again && last.node.Internal != n.Internal {
		w.signal() // routes still lead to where it was
	}
	switch {
	case !again || !missing || w.lostAt.After(last.sent): // or known to be missing
	case r.now().Sub(last.sent) < r.nodeTTL*9/10:
		// The key lasts from when the last heartbeat arrived, which was after it was sent,
		// and was looked at before now.
		w.flushedLocked(r, whyKeyGone)
	default:
		w.signal() // others may have taken what is held here
	}
	w.peers = live
	w.beats++
	return w.beats
}

// lostLocked notes that data was lost. The caller holds mu.
func (w *watch) lostLocked(r *Registry, why string) {
	w.pending, w.lostAt = true, r.now()
	w.settled = w.lostAt.Add(w.settle)
	w.waiting = w.othersLocked(slices.Clone(w.peers))
	r.schemaKnown.Store(false)
	w.signal()
	r.log.Warn("redis may have lost data: what is held is written again", "why", why)
}

// acquainted says whether this process has seen Redis before.
func (w *watch) acquainted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.servers != nil
}

// empty notes that Redis has no data at all. Who has seen it before knows that it has
// lost them. To a process that has just started it may be as new as it looks; nodes
// that hold something write it again within left.
func (w *watch) empty(r *Registry, left time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.servers == nil {
		now := r.now()
		w.settled, w.earliest = now.Add(w.settle), now.Add(min(w.settle, left))
		r.log.Info("redis has no data yet: names and ports are given in a moment, for nodes to write again what they hold", "wait", min(w.settle, left))
		return
	}
	if !w.pending { // else this is Restore, or what comes before it
		w.lostLocked(r, "the version of the schema is missing")
	}
}

// othersLocked leaves those of ids that are not nodes of this process. The caller
// holds mu.
func (w *watch) othersLocked(ids []string) []string {
	return slices.DeleteFunc(ids, func(id string) bool {
		for ref := range w.beaten {
			if ref.ID == id {
				return true
			}
		}
		return false
	})
}

// whyKeyGone is why data seem to be lost where the servers are the same.
const whyKeyGone = "the node's key is missing"

// flushedLocked notes that servers are the same, and their data are not, so
// that other nodes, which find it out by their next heartbeat, do not show when
// they have restored: they get the time for it. The caller holds mu.
func (w *watch) flushedLocked(r *Registry, why string) {
	w.lostLocked(r, why)
	if len(w.waiting) > 0 {
		w.earliest = r.now().Add(min(w.settle, 2*registry.NodeHeartbeat))
	}
}

// look asks each master who it is, unless somebody else does so meanwhile.
func (r *Registry) look(ctx context.Context) error {
	w, asked := r.watch, r.now()
	select {
	case w.looking <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-w.looking }()
	w.mu.Lock()
	done := w.looked.After(asked)
	w.mu.Unlock()
	if done {
		return nil
	}
	began := r.now()
	servers, err := r.masters(ctx)
	if err == nil && len(servers) > 0 {
		w.saw(r, servers, began)
	}
	return err
}

// masters asks each master who it is.
func (r *Registry) masters(ctx context.Context) (map[string]server, error) {
	var mu sync.Mutex // masters are asked at the same time
	servers, times := map[string]server{}, map[string]moment{}
	sections := []string{"server", "replication"}
	if _, clustered := r.c.(*redis.ClusterClient); clustered {
		// Nodes have no key on most masters that would be missing after a flush.
		sections = append(sections, "commandstats")
	}
	err := r.eachMaster(ctx, func(ctx context.Context, c *redis.Client) error {
		info, err := c.Info(ctx, sections...).Result()
		if err != nil {
			return err
		}
		fields := infoFields(info)
		if fields["role"] != "master" {
			return nil // the client will find out
		}
		offset, err := strconv.ParseInt(fields["master_repl_offset"], 10, 64)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		servers[fields["run_id"]] = server{fields["master_replid"], offset, callsOf(fields, "flushall") + callsOf(fields, "flushdb")}
		if us, err := strconv.ParseInt(fields["server_time_usec"], 10, 64); err == nil { // else claims ask for it
			times[c.Options().Addr] = moment{us / 1000, r.now()}
		}
		return nil
	})
	if err == nil {
		r.clocks.replace(times)
	}
	return servers, err
}

// saw compares the masters with those that were there the last time.
func (w *watch) saw(r *Registry, servers map[string]server, began time.Time) {
	sum := sha256.Sum256([]byte(strings.Join(slices.Sorted(maps.Keys(servers)), " ")))
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.servers
	w.looked, w.servers, w.state = began, servers, hex.EncodeToString(sum[:8])
	if before == nil {
		w.restored = w.state // nothing was held before Redis was first seen
		return
	}
	for id, now := range servers {
		switch was, known := before[id]; {
		case !known:
			w.lostLocked(r, "another server process")
			return
		case was.replication != now.replication:
			w.lostLocked(r, "another replication id")
			return
		case now.offset < was.offset:
			w.lostLocked(r, "a smaller replication offset")
			return
		case now.flushes > was.flushes:
			w.flushedLocked(r, "a master was flushed")
			return
		}
	}
}

// eachMaster calls f for each master of a cluster, or for the one server.
func (r *Registry) eachMaster(ctx context.Context, f func(context.Context, *redis.Client) error) error {
	if c, ok := r.c.(*redis.ClusterClient); ok {
		return c.ForEachMaster(ctx, f)
	}
	return f(ctx, r.c.(*redis.Client)) // what connect makes otherwise
}

// infoFields reads the lines of INFO.
func infoFields(info string) map[string]string {
	fields := map[string]string{}
	for line := range strings.Lines(info) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[key] = value
		}
	}
	return fields
}

// callsOf returns how often a command was called, of the fields of INFO; 0 where they do not tell.
func callsOf(fields map[string]string, command string) int64 {
	calls, _, _ := strings.Cut(strings.TrimPrefix(fields["cmdstat_"+command], "calls="), ",")
	n, err := strconv.ParseInt(calls, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// hasLostData says whether what was read since a moment may have been lost: whether
// Redis has lost data that Restore had not written again by then.
func (r *Registry) hasLostData(ctx context.Context, since time.Time) (bool, error) {
	if err := r.look(ctx); err != nil {
		return false, err
	}
	if err := r.lookForNodes(ctx); err != nil {
		return false, err
	}
	r.watch.mu.Lock()
	defer r.watch.mu.Unlock()
	return r.watch.pending || r.watch.lostAt.After(since) || r.watch.writtenAt.After(since), nil
}

// lookForNodes looks whether keys of nodes of this process are missing although
// they have not had the time to end.
func (r *Registry) lookForNodes(ctx context.Context) error {
	w := r.watch
	began := r.now()
	b := r.batch(ctx)
	epochs := map[registry.NodeRef]*redis.StringCmd{}
	w.mu.Lock()
	for ref, last := range w.beaten {
		if began.Sub(last.sent) < r.nodeTTL/2 && last.sent.After(w.lostAt) {
			epochs[ref] = b.pipe.HGet(ctx, r.keys.node(ref.ID), "epoch")
		}
	}
	w.mu.Unlock()
	if err := b.run(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for ref, epoch := range epochs {
		last, still := w.beaten[ref] // it may have left meanwhile
		if errors.Is(epoch.Err(), redis.Nil) && still && r.now().Sub(last.sent) < r.nodeTTL*9/10 && last.sent.After(w.lostAt) {
			w.flushedLocked(r, whyKeyGone)
		}
	}
	return nil
}

// mayLease says whether labels and ports may be handed out that nobody is known
// to have. After a loss of data, others may have them: nodes that have not written
// yet what they hold.
//
// It is asked after the device was found without a lease: the data that was looked
// at then is of the servers that are seen now, since servers do not come back.
func (r *Registry) mayLease(ctx context.Context) error {
	pending, err := r.hasLostData(ctx, r.now())
	if err != nil {
		return err
	}
	w := r.watch
	w.mu.Lock()
	now := r.now()
	settled, early := !now.Before(w.settled), now.Before(w.earliest)
	waiting, state := w.othersLocked(append(slices.Clone(w.waiting), w.peers...)), w.state
	w.mu.Unlock()
	if settled {
		return nil // also when nobody here restores anything
	}
	if pending || early {
		return errRestoring
	}
	b := r.batch(ctx)
	restored := make([]*redis.StringCmd, len(waiting))
	for i, id := range waiting {
		restored[i] = b.pipe.HGet(ctx, r.keys.node(id), "restored")
	}
	if err := b.run(); err != nil {
		return err
	}
	for _, cmd := range restored {
		if cmd.Val() != state {
			return errRestoring
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state == state && !w.pending {
		w.settled = time.Time{}
	}
	return nil
}

// missing says whether h, although by holds its device, may just have been lost
// from Redis: by is older. A younger generation, or the same one by another
// tunnel, is proof that it has been replaced or released.
func missing(h registry.Holder, by string) bool {
	gen, err := strconv.ParseInt(by, 10, 64)
	return err == nil && gen < h.Generation
}

// lostError is registry.ErrLost, unless it may be Redis that has lost h. What is said
// of h was read since a moment.
func (r *Registry) lostError(ctx context.Context, h registry.Holder, by string, since time.Time) error {
	if missing(h, by) {
		lost, err := r.hasLostData(ctx, since)
		if err != nil {
			return err
		}
		if lost {
			return errRestoring
		}
	}
	return registry.ErrLost
}
