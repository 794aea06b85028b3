/* Shared libraries want a source file of their own; the code is in the subsystems. */
typedef int xp_empty_translation_unit;
