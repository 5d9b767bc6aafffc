-- Takes each of KEYS that nobody holds. ARGV: lease in ms, token.
-- Answers per key: 0 taken; -1 held without an expiry (not by Hapax); else the ms left of the holder's lease.
local answers = {}
for i, key in ipairs(KEYS) do
  if redis.call('SET', key, ARGV[2], 'NX', 'PX', ARGV[1]) then
    answers[i] = 0
  else
    local left = redis.call('PTTL', key)
    if left == -1 then
      answers[i] = -1
    else
      answers[i] = math.max(left, 1)
    end
  end
end
return answers
