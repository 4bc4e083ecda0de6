local headers = require "iottunnel.headers"


local function sorted(list)
    table.sort(list or {})
    return list or {}
end


describe("headers of visitors", function()
    it("do not speak for a proxy or the edge", function()
        local sent = {}
        for _, name in ipairs { "X-Forwarded-For", "x-forwarded-anything",
            "X_Forwarded_For", "Forwarded", "X-Real-IP", "REMOTE-USER",
            "remote_groups", "Iottunnel-Error", "iottunnel_x",
            "Remote-Name", "Host", "Cookie", "Accept", "X-Forwarder", "Range",
            "If-Match", "X-Requested-With", "Iottunnel", "Authorization" } do
            sent[name] = "x"
        end
        assert.are.same({ "Forwarded", "Iottunnel-Error", "REMOTE-USER",
            "X-Forwarded-For", "X-Real-IP", "X_Forwarded_For", "iottunnel_x",
            "remote_groups", "x-forwarded-anything" },
            sorted(headers.drops(sent, { ["remote-name"] = true })))
    end)

    it("are kept where the operator says so, but never the edge's own", function()
        local keep = { ["iottunnel-error"] = true, ["x-forwarded-port"] = true }
        assert.are.same({ "Iottunnel-Error" }, sorted(headers.drops(
            { ["Iottunnel-Error"] = 1, ["X-Forwarded-Port"] = 1 }, keep)))
    end)

    it("end here when Connection names them", function()
        assert.are.same({ "x-a", "x-b" }, sorted(headers.hop_by_hop(
            { "X-A, close", " X-B ,Upgrade,, Host, X-Forwarded-For" }, {})))
        assert.are.same({}, headers.hop_by_hop("Authorization, Cookie", {}))
        assert.are.same({}, headers.hop_by_hop("X-User", { ["x-user"] = true }))
    end)
end)
