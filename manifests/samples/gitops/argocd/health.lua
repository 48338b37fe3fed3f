-- Health of a BsnNetwork or BsnNode for Argo CD, from its conditions:
--   Degraded     nothing more happens until a person helps: a consent is needed, a node was refused
--   Suspended    spec.paused is set
--   Healthy      as described, and working
--   Progressing  anything else: it goes on by itself
-- argocd-cm.yaml beside this file holds the same text, ready to be applied.
local status = obj.status or {}
-- The status is about an older description, or the operator has not seen the object at all.
if status.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "the operator has not seen this description yet" }
end
local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end
local function is_true(kind)
  return conditions[kind] ~= nil and conditions[kind].status == "True"
end
local function health(word, kind)
  local condition = conditions[kind] or {}
  local message = condition.message
  if message == nil or message == "" then
    message = condition.reason
  end
  return { status = word, message = message }
end
-- What waits because of the pause is no fault.
if is_true("Stalled") and conditions["Stalled"].reason ~= "PausedByUser" then
  return health("Degraded", "Stalled")
end
if is_true("Stalled") then
  return health("Suspended", "Stalled")
end
if is_true("Paused") then
  return health("Suspended", "Paused")
end
-- It works as it is, and a part of the description is still to come.
if is_true("Ready") and is_true("Reconciling") then
  return health("Progressing", "Reconciling")
end
if is_true("Ready") then
  return health("Healthy", "Ready")
end
return health("Progressing", "Ready")
