package caddymodule

import (
	"context"
	"errors"
	"testing"

	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// brokenCredentials is a registry that does not answer.
type brokenCredentials struct{ registry.Credentials }

func (brokenCredentials) Credential(context.Context, string) (registry.Credential, error) {
	return registry.Credential{}, errors.New("out of reach")
}

func TestEnrolledAuth(t *testing.T) {
	reg, err := registry.OpenMemory(registry.MemoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	ctx := t.Context()
	enrolled := new(EnrolledAuth)
	static := &StaticAuth{Devices: []StaticDevice{{"static-1", "a-secret-of-static-1"}, {"static-2", "a-secret-of-static-2"}}}
	if err := provision(static); err != nil {
		t.Fatal(err)
	}
	// The hub asks them in turn, the revocations first.
	all := asked([]tunnelcore.Authenticator{static, enrolled})
	ask := func(device, token string) error {
		for _, a := range all {
			if err := a.Authenticate(ctx, tunnelcore.Credential{Device: device, Token: token}); !errors.Is(err, tunnelcore.ErrNotMine) {
				return err
			}
		}
		return tunnelcore.ErrNotMine
	}
	check := func(what, device, token string, want error) {
		t.Helper()
		if err := ask(device, token); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}

	check("before the registry is open", "cam-1", "one", tunnelcore.ErrUndecided)
	enrolled.useRegistry(brokenCredentials{})
	check("when the registry does not answer", "cam-1", "one", tunnelcore.ErrUndecided)
	check("a static device meanwhile", "static-1", "a-secret-of-static-1", tunnelcore.ErrUndecided)
	enrolled.useRegistry(reg)
	check("never enrolled", "cam-1", "one", tunnelcore.ErrNotMine)
	if _, err := registry.Enroll(ctx, reg, "cam-1", registry.HashSecret("one"), registry.ReplaceNone); err != nil {
		t.Fatal(err)
	}
	check("enrolled", "cam-1", "one", nil)
	check("another secret", "cam-1", "two", errEnrolledSecret)
	check("no secret", "cam-1", "", errEnrolledSecret)
	check("the hash", "cam-1", registry.HashSecret("one").String(), errEnrolledSecret)

	if _, err := registry.Rotate(ctx, reg, "cam-1", registry.HashSecret("two")); err != nil {
		t.Fatal(err)
	}
	check("the old one while there are two", "cam-1", "one", nil)
	check("the new one", "cam-1", "two", nil)
	check("the new one again", "cam-1", "two", nil)
	check("the old one after that", "cam-1", "one", errEnrolledSecret)

	check("a static device", "static-1", "a-secret-of-static-1", nil)
	for _, device := range []string{"cam-1", "static-1"} {
		if err := registry.Revoke(ctx, reg, device); err != nil {
			t.Fatal(err)
		}
	}
	check("revoked", "cam-1", "two", errRevoked)
	check("revoked, without a secret", "cam-1", "", errRevoked)
	check("revoked, though static knows it", "static-1", "a-secret-of-static-1", errRevoked)
	check("another static device", "static-2", "a-secret-of-static-2", nil)
}
