package caddymodule

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// takesAll is an authenticator that believes everybody, within its policy.
type takesAll struct{ Policy }

func (*takesAll) Authenticate(context.Context, tunnelcore.Credential) error { return nil }

func TestPolicy(t *testing.T) {
	refused := errors.New("wrong")
	ports := func(numbers ...uint16) (all []wire.Port) {
		for _, n := range numbers {
			all = append(all, wire.Port{Number: n})
		}
		return all
	}
	for _, c := range []struct {
		name   string
		policy Policy
		device string
		ports  []wire.Port
		want   error
	}{
		{"no policy", Policy{}, "cam-1", ports(22, 80), nil},
		{"its device", Policy{AllowDevices: []string{"lyon-*", "cam-1"}}, "lyon-7", ports(80), nil},
		{"its other device", Policy{AllowDevices: []string{"lyon-*", "cam-1"}}, "cam-1", ports(80), nil},
		{"another one's device", Policy{AllowDevices: []string{"lyon-*", "cam-1"}}, "cam-2", ports(80), tunnelcore.ErrNotMine},
		{"its ports", Policy{AllowPorts: []string{"80", "8000-8999"}}, "cam-1", ports(80, 8000, 8999), nil},
		{"no port", Policy{AllowPorts: []string{"80"}}, "cam-1", nil, nil},
		{"a port below", Policy{AllowPorts: []string{"80", "8000-8999"}}, "cam-1", ports(80, 7999), tunnelcore.ErrNotEntitled},
		{"a port above", Policy{AllowPorts: []string{"80", "8000-8999"}}, "cam-1", ports(9000), tunnelcore.ErrNotEntitled},
	} {
		if err := c.policy.compile(); err != nil {
			t.Fatal(err)
		}
		all := asked([]tunnelcore.Authenticator{&takesAll{c.policy}})
		err := all[0].Authenticate(t.Context(), tunnelcore.Credential{Device: c.device, Ports: c.ports})
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		// A wrong credential is wrong whatever else is allowed.
		wrong := policed{tunnelcore.AuthenticatorFunc(func(context.Context, tunnelcore.Credential) error { return refused }), &c.policy}
		if err := wrong.Authenticate(t.Context(), tunnelcore.Credential{Device: "cam-1", Ports: ports(1)}); err == nil {
			t.Errorf("%s: a wrong credential is right", c.name)
		}
	}
	for _, c := range []struct {
		policy Policy
		want   string
	}{
		{Policy{AllowDevices: []string{"lyon-["}}, `allow_devices: "lyon-[" is not a pattern`},
		{Policy{AllowDevices: []string{""}}, `allow_devices: "" is not a pattern`},
		{Policy{AllowPorts: []string{"http"}}, `allow_ports: "http" is neither a port nor a range`},
		{Policy{AllowPorts: []string{"0"}}, `allow_ports: "0" is neither`},
		{Policy{AllowPorts: []string{"90-80"}}, `allow_ports: "90-80" is neither`},
		{Policy{AllowPorts: []string{"65536"}}, `allow_ports: "65536" is neither`},
	} {
		a := &App{authenticators: []tunnelcore.Authenticator{&takesAll{c.policy}}}
		if err := a.validateAuth(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %s", c.policy, err, c.want)
		}
	}
}

// A device that is revoked stays out, also where `enrolled` does not speak for it.
func TestPolicyKeepsRevocations(t *testing.T) {
	reg, err := registry.OpenMemory(registry.MemoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	for _, device := range []string{"cam-1", "lyon-1"} {
		if err := registry.Revoke(t.Context(), reg, device); err != nil {
			t.Fatal(err)
		}
	}
	enrolled := &EnrolledAuth{Policy: Policy{AllowDevices: []string{"lyon-*"}}}
	enrolled.useRegistry(reg)
	all := asked([]tunnelcore.Authenticator{enrolled, new(takesAll)})
	for device, want := range map[string]error{"cam-1": errRevoked, "lyon-1": errRevoked, "cam-2": nil} {
		var err error
		for _, a := range all {
			if err = a.Authenticate(t.Context(), tunnelcore.Credential{Device: device}); !errors.Is(err, tunnelcore.ErrNotMine) {
				break
			}
		}
		if !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("%s: %v, want %v", device, err, want)
		}
	}
}
