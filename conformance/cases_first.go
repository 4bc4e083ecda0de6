package conformance

import "github.com/iottunnel/iottunnel/tunnelcore/wire"

// cases are all there are, in the order of the rules.
var cases = []testCase{
	{"2.1", "the control socket has its path", 0, controlPath},
	{"5.1", "a ping is answered with its payload", 0, pong},
	{"6.4", "a service that is not there is `refused`", dead, refusedDead},
}

func controlPath(t *T) {
	h := t.control()
	t.check(h.request.URL.Path == wire.ControlPath, "the path "+wire.ControlPath, "%q", h.request.URL.Path)
}

func pong(t *T) {
	u := t.up(t.caps())
	for _, payload := range []string{"7", "", "0123456789"} {
		u.send(whole(opPing, []byte(payload)))
		want := event{op: opPong, data: []byte(payload)}.String()
		e := u.await(want, t.patience(), func(e event) bool { return e.op == opPong })
		t.check(string(e.data) == payload, want, "%v", e)
	}
}

func refusedDead(t *T) {
	u := t.up(t.caps())
	s := u.open(t.rig.cfg.DeadPort, u.ready.Early)
	s.awaitRefused("`refused` with the number of the stream", t.patience())
}
